//! The way to the broker the command line names.

use longwire_client::Client;

use crate::Global;
use crate::error::Failure;

/// Refuses `::1:7651`: where the address ends is anybody's guess.
fn check(broker: &str) -> Result<(), Failure> {
    let bare = broker.strip_prefix("http://").unwrap_or(broker);
    let has_path_or_brackets = bare.contains(['/', '[']);
    if bare.matches(':').count() > 1 && !has_path_or_brackets {
        let message = format!("address {broker:?}: IPv6 goes in brackets, e.g. [::1]:7651");
        return Err(Failure::usage(message));
    }
    Ok(())
}

/// Connects to the broker.
pub(crate) async fn connect(global: &Global) -> Result<Client, Failure> {
    check(&global.broker)?;
    let client_id = format!("longwire-cli-{}", std::process::id());
    Ok(Client::builder(&global.broker).client_id(client_id).connect().await?)
}
