//! Bad input gets a stable error and harms nobody else: a healthy pair of clients beside every attack
//! goes on, and the broker's memory and descriptors stay bounded.
#![allow(clippy::unwrap_used)]

mod floods;
mod frames;
mod healthy;
mod records;
mod slowness;

use std::path::Path;

use healthy::Healthy;
use longwire_tests::broker_process::{BrokerCommand, BrokerProcess};
use longwire_tests::frame_client::FrameClient;
use tempfile::TempDir;

/// A broker process, and a healthy pair of clients on it.
struct Scene {
    broker: BrokerProcess,
    healthy: Healthy,
    folder: TempDir,
}

impl Scene {
    fn start(settings: &[&str]) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let command = BrokerCommand::new(folder.path()).set("storage.segment_bytes=16MiB");
        let command = settings.iter().fold(command, |command, setting| command.set(*setting));
        let broker = command.start();
        let healthy = Healthy::start(broker.control());
        Scene { broker, healthy, folder }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn connect(&self) -> FrameClient {
        FrameClient::connect(self.broker.addresses().data)
    }

    /// The healthy pair has gone on during all of this, and the broker still serves new clients.
    fn assert_unharmed(self) {
        self.healthy.assert_undisturbed();
        let pair = Healthy::start(self.broker.control());
        pair.assert_undisturbed();
    }
}
