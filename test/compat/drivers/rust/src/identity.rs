//! Gets tokens with azure_identity 1.0.

mod protocol;

use azure_core::credentials::TokenCredential;
use azure_identity::{ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId};
use protocol::{Request, Token};
use std::error::Error;
use std::sync::Arc;

#[tokio::main]
async fn main() {
    let request = Request::from_arguments();
    let credential = managed(&request);
    let scope = request.scope();
    request
        .run(async || -> Result<Token, Box<dyn Error>> {
            let token = credential.clone()?.get_token(&[&scope], None).await?;
            Ok(Token { token: token.token.secret().to_owned(), expires_on: token.expires_on.unix_timestamp() })
        })
        .await;
}

fn managed(request: &Request) -> Result<Arc<ManagedIdentityCredential>, String> {
    let given = |name: &str| request.get(name).map(str::to_owned);
    let id = given("client_id")
        .map(UserAssignedId::ClientId)
        .or(given("object_id").map(UserAssignedId::ObjectId))
        .or(given("resource_id").map(UserAssignedId::ResourceId));
    let options = ManagedIdentityCredentialOptions { user_assigned_id: id, ..Default::default() };
    ManagedIdentityCredential::new(Some(options)).map_err(|e| e.to_string())
}
