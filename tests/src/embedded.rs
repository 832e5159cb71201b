//! A broker inside the test's own process.

use std::path::Path;

use longwire_broker::{Broker, Config};
use longwire_client::Client;

/// Starts a broker with small segments, and what else `change` says, and connects to it.
///
/// # Panics
///
/// If either fails.
pub async fn start(folder: &Path, change: impl FnOnce(&mut Config)) -> (Broker, Client) {
    let mut config = Config::ephemeral(folder);
    config.storage.segment_bytes = 16 << 20;
    change(&mut config);
    let broker = Broker::start(config).await.unwrap_or_else(|error| panic!("{error}"));
    let client = Client::connect(broker.control_addr().to_string()).await;
    (broker, client.unwrap_or_else(|error| panic!("{error}")))
}
