import java.lang.reflect.Field;
import org.apache.hadoop.fs.azurebfs.oauth2.AzureADAuthenticator;
import org.apache.hadoop.fs.azurebfs.oauth2.AzureADToken;
import org.apache.hadoop.fs.azurebfs.oauth2.MsiTokenProvider;
import org.apache.hadoop.fs.azurebfs.services.ExponentialRetryPolicy;

/** Gets tokens with hadoop-azure's MsiTokenProvider, whose resource is always https://storage.azure.com/. */
final class HadoopAzure {
    private static final String ENDPOINT = "http://169.254.169.254/metadata/identity/oauth2/token";

    public static void main(String[] args) throws Exception {
        Protocol.run(args, request -> {
            useDefaultRetries();
            MsiTokenProvider provider = new MsiTokenProvider(ENDPOINT, null, request.get("client_id"), "");
            return () -> {
                AzureADToken token = provider.getToken();
                return new Protocol.Token(token.getAccessToken(), token.getExpiry().toInstant().getEpochSecond());
            };
        });
    }

    /**
     * Sets the retries of the default configuration: five, with pauses of at most 60 s that begin
     * with 2 ms. Only the file system sets them, which requires the whole of Hadoop.
     */
    private static void useDefaultRetries() throws ReflectiveOperationException {
        Field policy = AzureADAuthenticator.class.getDeclaredField("tokenFetchRetryPolicy");
        policy.setAccessible(true);
        policy.set(null, new ExponentialRetryPolicy(5, 0, 60_000, 2));
    }
}
