//! The data plane as a client sees it: raw frames over TCP.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod client;
mod descriptors;
mod fetch;
mod hostile;
mod limits;
mod produce;
mod sessions;
mod slow_frames;
mod transfer;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use longwire_broker::Broker;
use longwire_broker::config::{Config, DefaultDurability};
use longwire_storage::Store;
use tempfile::TempDir;

/// A broker in a folder of its own, gone when dropped.
struct TestBroker {
    broker: Option<Broker>,
    runtime: tokio::runtime::Runtime,
    dir: TempDir,
}

impl TestBroker {
    fn start() -> TestBroker {
        TestBroker::start_with(|_| {})
    }

    /// Topics are created as `write`, so that no test waits for a disk without need.
    fn start_with(change: impl FnOnce(&mut Config)) -> TestBroker {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::ephemeral(dir.path().join("data"));
        config.broker.default_durability = DefaultDurability::Write;
        config.storage.segment_bytes = 64 << 20;
        change(&mut config);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let broker = runtime.block_on(Broker::start(config)).unwrap();
        TestBroker { broker: Some(broker), runtime, dir }
    }

    fn addr(&self) -> SocketAddr {
        self.broker.as_ref().unwrap().data_addr()
    }

    fn store(&self) -> &Store {
        self.broker.as_ref().unwrap().store()
    }

    fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    fn stop(&mut self) {
        if let Some(broker) = self.broker.take() {
            self.runtime.block_on(broker.shutdown()).unwrap();
        }
    }

    /// The value of a metric, by its name and labels as they are printed.
    fn metric(&self, name: &str) -> f64 {
        let http = self.broker.as_ref().unwrap().http_addr();
        let mut stream = TcpStream::connect(http).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let line =
            text.lines().find(|line| line.strip_prefix(name).is_some_and(|l| l.starts_with(' ')));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in:\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        self.stop();
    }
}
