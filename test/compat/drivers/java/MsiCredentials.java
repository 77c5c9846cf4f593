import com.microsoft.azure.AzureEnvironment;
import com.microsoft.azure.credentials.AppServiceMSICredentials;
import com.microsoft.azure.credentials.AzureTokenCredentials;
import com.microsoft.azure.credentials.MSICredentials;
import java.util.Map;

/**
 * Gets tokens with com.microsoft.azure:azure-client-authentication, as the track 1 SDK does. The
 * application chooses the class by the service in which it runs.
 */
final class MsiCredentials {
    public static void main(String[] args) throws Exception {
        Protocol.run(args, request -> {
            AzureTokenCredentials credentials = System.getenv("MSI_ENDPOINT") == null ? make(request) : makeForAppService(request);
            return () -> new Protocol.Token(credentials.getToken(request.get("resource")), 0);
        });
    }

    private static AzureTokenCredentials make(Map<String, String> request) {
        MSICredentials credentials = new MSICredentials(AzureEnvironment.AZURE);
        if (request.containsKey("client_id")) {
            credentials.withClientId(request.get("client_id"));
        } else if (request.containsKey("object_id")) {
            credentials.withObjectId(request.get("object_id"));
        } else if (request.containsKey("resource_id")) {
            credentials.withIdentityId(request.get("resource_id"));
        }
        return credentials;
    }

    private static AzureTokenCredentials makeForAppService(Map<String, String> request) {
        AppServiceMSICredentials credentials = new AppServiceMSICredentials(AzureEnvironment.AZURE);
        if (request.containsKey("client_id")) {
            credentials.withClientId(request.get("client_id"));
        }
        return credentials;
    }
}
