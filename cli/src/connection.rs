//! The way to the broker the command line names.

use longwire_client::Client;

use crate::Global;
use crate::error::Failure;

/// Connects to the broker.
pub(crate) async fn connect(global: &Global) -> Result<Client, Failure> {
    let client_id = format!("longwire-cli-{}", std::process::id());
    Ok(Client::builder(&global.broker).client_id(client_id).connect().await?)
}
