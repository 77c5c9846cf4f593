import com.microsoft.azure.AzureEnvironment;
import com.microsoft.azure.credentials.MSICredentials;

/** Gets tokens with com.microsoft.azure:azure-client-authentication, as the track 1 SDK does. */
final class MsiCredentials {
    public static void main(String[] args) throws Exception {
        Protocol.run(args, request -> {
            MSICredentials credentials = new MSICredentials(AzureEnvironment.AZURE);
            if (request.containsKey("client_id")) {
                credentials.withClientId(request.get("client_id"));
            } else if (request.containsKey("object_id")) {
                credentials.withObjectId(request.get("object_id"));
            } else if (request.containsKey("resource_id")) {
                credentials.withIdentityId(request.get("resource_id"));
            }
            return () -> new Protocol.Token(credentials.getToken(request.get("resource")), 0);
        });
    }
}
