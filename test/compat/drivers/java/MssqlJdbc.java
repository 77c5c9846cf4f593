import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.util.Date;
import java.util.stream.Stream;

/**
 * Gets tokens with mssql-jdbc. The driver calls the method with which authentication=ActiveDirectoryMSI
 * gets its token, by reflection, because a connection requires an SQL Server that first sends the
 * resource.
 */
final class MssqlJdbc {
    public static void main(String[] args) throws Exception {
        Protocol.run(args, request -> {
            Method method = tokenMethod();
            return () -> {
                Object token = method.invoke(null, request.get("resource"), request.get("client_id"));
                Date expiresOn = (Date) field(token, "expiresOn");
                return new Protocol.Token((String) field(token, "accessToken"), expiresOn.getTime() / 1000);
            };
        });
    }

    /** The method has another name since 12.2, which uses azure-identity. */
    private static Method tokenMethod() throws ClassNotFoundException {
        Class<?> utility = Class.forName("com.microsoft.sqlserver.jdbc.SQLServerSecurityUtility");
        Method method = Stream.of(utility.getDeclaredMethods())
                .filter(m -> m.getName().equals("getMSIAuthToken") || m.getName().equals("getManagedIdentityCredAuthToken"))
                .findFirst().orElseThrow();
        method.setAccessible(true);
        return method;
    }

    private static Object field(Object token, String name) throws ReflectiveOperationException {
        Field field = token.getClass().getDeclaredField(name);
        field.setAccessible(true);
        return field.get(token);
    }
}
