//! A broker to run commands against.

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

use longwire_broker::{Broker, Config};
use longwire_proto::record::{RecordDraft, sys_flag};
use longwire_storage::RecordRun;
use tempfile::TempDir;

/// A broker of its own for one test.
pub(crate) struct TestBroker {
    address: String,
    broker: Option<Broker>,
    runtime: tokio::runtime::Runtime,
    _folder: TempDir,
}

impl TestBroker {
    pub(crate) fn start() -> TestBroker {
        TestBroker::with(|_| {})
    }

    /// One whose settings are changed before it starts.
    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> TestBroker {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::ephemeral(folder.path());
        config.storage.segment_bytes = 64 << 20;
        change(&mut config);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let broker = runtime.block_on(Broker::start(config)).unwrap();
        let address = broker.control_addr().to_string();
        TestBroker { address, broker: Some(broker), runtime, _folder: folder }
    }

    /// Where its data plane is.
    pub(crate) fn data_address(&self) -> String {
        self.broker.as_ref().unwrap().data_addr().to_string()
    }

    /// Where it answers over HTTP.
    pub(crate) fn http_address(&self) -> String {
        self.broker.as_ref().unwrap().http_addr().to_string()
    }

    /// `longwire` with these arguments, for this broker.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = longwire();
        command.env("LONGWIRE_BROKER", &self.address).args(args);
        command
    }

    /// Runs it with nothing on standard input.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, b"")
    }

    /// Runs it with these bytes on standard input.
    pub(crate) fn run_with(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.spawn(args, Stdio::piped());
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A command that fails early closes its standard input, which is its right.
        let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        feeding.join().unwrap();
        output
    }

    /// Starts it, with pipes for its output.
    pub(crate) fn spawn(&self, args: &[&str], stdin: Stdio) -> Child {
        let mut command = self.command(args);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Stores a record in queue 0 that is complete, and that nobody can read.
    pub(crate) fn store_bad(&self, topic: &str) {
        let (body, sys_flag) = (&b"not compressed"[..], sys_flag::COMPRESSED);
        let record = RecordDraft { topic, body, sys_flag, ..RecordDraft::default() };
        let store = self.broker.as_ref().unwrap().store();
        let queue = store.topic(topic).unwrap().queue(record.queue).unwrap();
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        let mut run = RecordRun::check(topic, record.queue, &mut bytes).unwrap();
        store.append_blocking(&queue, &mut run).unwrap();
    }

    /// Runs it and returns what it writes to standard output; it must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> Vec<u8> {
        succeeded(args, self.run(args))
    }

    /// Like [`ok`](TestBroker::ok), with these bytes on standard input.
    pub(crate) fn ok_with(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        succeeded(args, self.run_with(args, input))
    }

    /// Runs it with `--json` and returns what it prints; it must succeed.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let out = self.ok(&[args, &["--json"]].concat());
        serde_json::from_slice(&out).unwrap()
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            let _ = self.runtime.block_on(broker.shutdown());
        }
    }
}

/// `longwire` without a broker.
pub(crate) fn longwire() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longwire"));
    command.env_remove("LONGWIRE_BROKER");
    command
}

/// The exit code and what was said on standard error.
pub(crate) fn failure(output: &Output) -> (i32, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said)
}

fn succeeded(args: &[&str], output: Output) -> Vec<u8> {
    let (code, said) = failure(&output);
    assert_eq!(code, 0, "{args:?}: {said}");
    output.stdout
}
