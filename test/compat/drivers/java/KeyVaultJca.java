import com.azure.security.keyvault.jca.implementation.model.AccessToken;
import com.azure.security.keyvault.jca.implementation.utils.AccessTokenUtil;

/**
 * Gets tokens with azure-security-keyvault-jca. The driver calls the class with which the key store
 * gets its token, because a key store requires a Key Vault.
 */
final class KeyVaultJca {
    public static void main(String[] args) throws Exception {
        Protocol.run(args, request -> () -> {
            String identity = request.getOrDefault("object_id", request.get("client_id"));
            AccessToken token = AccessTokenUtil.getAccessToken(request.get("resource"), identity);
            if (token == null) {
                throw new IllegalStateException("getAccessToken returned nothing");
            }
            return new Protocol.Token(token.getAccessToken(), 0);
        });
    }
}
