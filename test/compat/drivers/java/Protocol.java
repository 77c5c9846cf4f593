import java.util.HashMap;
import java.util.Map;

/**
 * How every Java driver is told what to do and how it tells what happened;
 * test/compat says what each word means.
 */
final class Protocol {
    /** What the last credential of a chain returns, so that a chain that fell through is seen. */
    static final String FIXED_TOKEN = "fell-through";

    /** A token, and when it expires in seconds; 0 where the library does not say. */
    record Token(String token, long expiresOn) {}

    /** One call on the library. */
    interface Call {
        Token ask() throws Exception;
    }

    /** Makes the library's object, once. */
    interface Maker {
        Call make(Map<String, String> request) throws Exception;
    }

    /** Asks as often as it was told and prints one line for each answer. */
    static void run(String[] args, Maker maker) throws InterruptedException {
        Map<String, String> request = new HashMap<>();
        for (String argument : args) {
            String[] pair = argument.split("=", 2);
            request.put(pair[0], pair[1]);
        }
        int calls = Integer.parseInt(request.getOrDefault("calls", "1"));
        long pause = (long) (1000 * Double.parseDouble(request.getOrDefault("pause", "0")));
        Call call = null;
        for (int n = 0; n < calls; n++) {
            if (n > 0) {
                Thread.sleep(pause);
            }
            long began = System.nanoTime();
            String line;
            try {
                if (call == null) {
                    call = maker.make(request);
                }
                Token token = call.ask();
                line = "\"token\":" + quote(token.token()) + ",\"expires_on\":" + token.expiresOn();
            } catch (Throwable e) {
                line = "\"error\":" + quote(e.getClass().getSimpleName()) + ",\"message\":" + quote(message(e));
            }
            System.out.println("{" + line + ",\"ms\":" + (System.nanoTime() - began) / 1e6 + "}");
        }
        System.exit(0); // some libraries leave threads behind
    }

    /** The messages of an error and of what caused it. */
    private static String message(Throwable e) {
        String message = String.valueOf(e.getMessage());
        return e.getCause() == null ? message : message + "; " + e.getCause();
    }

    private static String quote(String s) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char c : s.toCharArray()) {
            if (c == '"' || c == '\\') {
                quoted.append('\\').append(c);
            } else {
                quoted.append(c < ' ' ? ' ' : c);
            }
        }
        return quoted.append('"').toString();
    }
}
