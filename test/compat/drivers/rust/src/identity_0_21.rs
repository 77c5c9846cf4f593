//! Gets tokens with azure_identity 0.21.

mod protocol;

use azure_core::auth::TokenCredential;
use azure_identity::{
    AppServiceManagedIdentityCredential, DefaultAzureCredential, TokenCredentialOptions, VirtualMachineManagedIdentityCredential,
};
use protocol::{Request, Token};
use std::error::Error;
use std::sync::Arc;

#[tokio::main]
async fn main() {
    let request = Request::from_arguments();
    let credential = credential(&request);
    let scope = request.scope();
    request
        .run(async || -> Result<Token, Box<dyn Error>> {
            let token = credential.clone()?.get_token(&[&scope]).await?;
            Ok(Token { token: token.token.secret().to_owned(), expires_on: token.expires_on.unix_timestamp() })
        })
        .await;
}

fn credential(request: &Request) -> Result<Arc<dyn TokenCredential>, String> {
    let options = TokenCredentialOptions::default();
    if request.get("credential") == Some("default") {
        return match DefaultAzureCredential::create(options) {
            Ok(chain) => Ok(Arc::new(chain)),
            Err(e) => Err(e.to_string()),
        };
    }
    // The application chooses the type by the service in which it runs.
    if std::env::var("IDENTITY_ENDPOINT").is_ok() {
        return match AppServiceManagedIdentityCredential::create(options) {
            Ok(credential) => Ok(Arc::new(credential)),
            Err(e) => Err(e.to_string()),
        };
    }
    Ok(Arc::new(VirtualMachineManagedIdentityCredential::new(options)))
}
