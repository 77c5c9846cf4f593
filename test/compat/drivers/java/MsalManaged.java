import com.microsoft.aad.msal4j.IAuthenticationResult;
import com.microsoft.aad.msal4j.ManagedIdentityApplication;
import com.microsoft.aad.msal4j.ManagedIdentityId;
import com.microsoft.aad.msal4j.ManagedIdentityParameters;
import java.util.Map;

/** Gets tokens with msal4j's ManagedIdentityApplication. */
final class MsalManaged {
    public static void main(String[] args) throws Exception {
        Protocol.run(args, request -> {
            ManagedIdentityApplication application = ManagedIdentityApplication.builder(identity(request)).build();
            ManagedIdentityParameters parameters = ManagedIdentityParameters.builder(request.get("resource")).build();
            return () -> {
                IAuthenticationResult result = application.acquireTokenForManagedIdentity(parameters).get();
                return new Protocol.Token(result.accessToken(), result.expiresOnDate().toInstant().getEpochSecond());
            };
        });
    }

    private static ManagedIdentityId identity(Map<String, String> request) {
        if (request.containsKey("client_id")) {
            return ManagedIdentityId.userAssignedClientId(request.get("client_id"));
        }
        if (request.containsKey("object_id")) {
            return ManagedIdentityId.userAssignedObjectId(request.get("object_id"));
        }
        if (request.containsKey("resource_id")) {
            return ManagedIdentityId.userAssignedResourceId(request.get("resource_id"));
        }
        return ManagedIdentityId.systemAssigned();
    }
}
