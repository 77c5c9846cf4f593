import java.util.HashMap;
import java.util.Map;

/**
 * The arguments and the output of the Java drivers. The package documentation of test/compat
 * describes them.
 */
final class Protocol {
    /** The token of the last credential of a chain: the credentials before it returned no token. */
    static final String FIXED_TOKEN = "fell-through";

    /** A token and its expiry in seconds; 0 if the library does not return the expiry. */
    record Token(String token, long expiresOn) {}

    /** A call of the library. */
    interface Call {
        Token ask() throws Exception;
    }

    /** Creates the library's object, once. */
    interface Maker {
        Call make(Map<String, String> request) throws Exception;
    }

    /** Calls the library as often as requested and prints one line for each result. */
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
        System.exit(0); // some libraries leave threads running
    }

    /** The messages of an error and its causes. */
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
