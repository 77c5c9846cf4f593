import com.azure.core.credential.AccessToken;
import com.azure.core.credential.TokenCredential;
import com.azure.core.credential.TokenRequestContext;
import com.azure.identity.ChainedTokenCredentialBuilder;
import com.azure.identity.DefaultAzureCredentialBuilder;
import com.azure.identity.ManagedIdentityCredentialBuilder;
import java.time.OffsetDateTime;
import java.util.Map;
import reactor.core.publisher.Mono;

/** Gets tokens with com.azure:azure-identity, any version. */
final class AzureIdentity {
    public static void main(String[] args) throws Exception {
        Protocol.run(args, request -> {
            TokenCredential credential = make(request);
            TokenRequestContext context = new TokenRequestContext().addScopes(request.get("resource") + "/.default");
            return () -> {
                AccessToken token = credential.getToken(context).block();
                return new Protocol.Token(token.getToken(), token.getExpiresAt().toEpochSecond());
            };
        });
    }

    private static TokenCredential make(Map<String, String> request) throws ReflectiveOperationException {
        switch (request.get("credential")) {
            case "default":
                return new DefaultAzureCredentialBuilder().build();
            case "fallthrough":
                return new ChainedTokenCredentialBuilder().addLast(managed(request)).addLast(AzureIdentity::fixed).build();
            default:
                return managed(request);
        }
    }

    private static TokenCredential managed(Map<String, String> request) throws ReflectiveOperationException {
        ManagedIdentityCredentialBuilder builder = new ManagedIdentityCredentialBuilder();
        select(builder, "clientId", request.get("client_id"));
        select(builder, "objectId", request.get("object_id"));
        select(builder, "resourceId", request.get("resource_id"));
        return builder.build();
    }

    /** Calls a method by its name, because old versions do not have all three methods. */
    private static void select(ManagedIdentityCredentialBuilder builder, String method, String id)
            throws ReflectiveOperationException {
        if (id != null) {
            builder.getClass().getMethod(method, String.class).invoke(builder, id);
        }
    }

    private static Mono<AccessToken> fixed(TokenRequestContext context) {
        return Mono.just(new AccessToken(Protocol.FIXED_TOKEN, OffsetDateTime.now().plusHours(1)));
    }
}
