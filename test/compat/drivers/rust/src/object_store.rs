//! Gets tokens with object_store, whose resource is always https://storage.azure.com.

mod protocol;

use object_store::azure::{AzureConfigKey, AzureCredential, AzureCredentialProvider, MicrosoftAzureBuilder};
use protocol::{Request, Token};
use std::error::Error;

#[tokio::main]
async fn main() {
    let request = Request::from_arguments();
    let credential = managed(&request);
    request
        .run(async || -> Result<Token, Box<dyn Error>> {
            match credential.clone()?.get_credential().await?.as_ref() {
                AzureCredential::BearerToken(token) => Ok(Token { token: token.to_owned(), expires_on: 0 }),
                _ => Err("not a bearer token".into()),
            }
        })
        .await;
}

fn managed(request: &Request) -> Result<AzureCredentialProvider, String> {
    let mut builder = MicrosoftAzureBuilder::new().with_account("shop").with_container_name("orders");
    for (name, key) in [
        ("client_id", AzureConfigKey::ClientId),
        ("object_id", AzureConfigKey::ObjectId),
        ("resource_id", AzureConfigKey::MsiResourceId),
    ] {
        if let Some(id) = request.get(name) {
            builder = builder.with_config(key, id);
        }
    }
    builder.build().map(|store| store.credentials().clone()).map_err(|e| e.to_string())
}
