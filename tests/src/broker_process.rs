//! The real `longwire-broker` binary as a child process.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longwire_storage::Plant;
use rustix::process::{Pid, Signal, kill_process};

use crate::binary::{broker_binary, torture_binary};
use crate::planted_broker;
use crate::process_figures::ProcessFigures;

/// Far longer than a broker takes to start or stop: it only keeps a broken one from hanging a suite.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of its log that are kept for messages.
const LOG_LINES_MAX: usize = 400;
/// Below the ports that the kernel gives to outgoing connections: a client that dials a broker that
/// is away must not happen to get the very port it dials.
const FIXED_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Where a broker's three planes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Data plane.
    pub data: SocketAddr,
    /// Control plane: what a client is given.
    pub control: SocketAddr,
    /// Health and metrics.
    pub http: SocketAddr,
}

impl Addresses {
    /// Three free ports that a restarted broker can have again.
    pub fn fixed() -> Addresses {
        let mut port = FIXED_PORTS.start + (crate::random() % 11_000) as u16;
        let mut next = || loop {
            port = if port + 1 < FIXED_PORTS.end { port + 1 } else { FIXED_PORTS.start };
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if TcpListener::bind(address).is_ok() {
                return address;
            }
        };
        Addresses { data: next(), control: next(), http: next() }
    }

    fn any() -> Addresses {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Addresses { data: any, control: any, http: any }
    }

    /// What the line that says "ready" gives.
    fn parse(ready: &str) -> Option<Addresses> {
        let field = |name: &str| {
            let value = ready.split_whitespace().find_map(|word| word.strip_prefix(name))?;
            value.parse().ok()
        };
        Some(Addresses {
            data: field("data=")?,
            control: field("control=")?,
            http: field("http=")?,
        })
    }
}

/// How to start a broker; can be started again and again.
#[derive(Debug, Clone)]
pub struct BrokerCommand {
    folder: PathBuf,
    addresses: Addresses,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    plant: Option<Plant>,
}

/// A broker that ended before it was ready.
#[derive(Debug)]
pub struct Refused {
    /// Its exit status.
    pub code: Option<i32>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Refused { code, stderr } = self;
        write!(f, "the broker ended with status {code:?} instead of starting:\n{stderr}")
    }
}

impl BrokerCommand {
    /// A broker whose store is in `folder`, on any free ports.
    pub fn new(folder: impl Into<PathBuf>) -> BrokerCommand {
        BrokerCommand {
            folder: folder.into(),
            addresses: Addresses::any(),
            settings: Vec::new(),
            environment: Vec::new(),
            plant: None,
        }
    }

    /// On these ports, every time it is started.
    pub fn on(mut self, addresses: Addresses) -> BrokerCommand {
        self.addresses = addresses;
        self
    }

    /// With a setting, such as `storage.segment_bytes=4MiB`.
    pub fn set(mut self, setting: impl Into<String>) -> BrokerCommand {
        self.settings.push(setting.into());
        self
    }

    /// Where its store is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// With a variable in its environment, which is empty otherwise.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> BrokerCommand {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// With a bug planted. It is then a [`planted_broker`], not the real binary.
    pub fn plant(mut self, bug: Option<Plant>) -> BrokerCommand {
        self.plant = bug;
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    ///
    /// With what it wrote, if it ends instead.
    pub fn start(&self) -> BrokerProcess {
        match self.try_start() {
            Ok(broker) => broker,
            Err(refused) => panic!("{refused}"),
        }
    }

    /// Starts it and kills it with -9 a while later, ready or not.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn kill_after(&self, age: Duration) {
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the broker's binary can be started");
        std::thread::sleep(age);
        end(&mut child);
    }

    /// Starts it and waits until it is ready, or has ended.
    ///
    /// # Panics
    ///
    /// If it does neither.
    pub fn try_start(&self) -> Result<BrokerProcess, Refused> {
        BrokerProcess::spawn(&mut self.command())
    }

    fn command(&self) -> Command {
        let Addresses { data, control, http } = self.addresses;
        let planes = [("data", data), ("control", control), ("http", http)];
        let mut settings = vec![format!("data_dir={}", self.folder.display())];
        settings.extend(planes.map(|(plane, address)| format!("listen.{plane}={address}")));
        settings.extend(self.settings.iter().cloned());
        let mut command = match self.plant {
            None => Command::new(broker_binary()),
            Some(bug) => planted_broker::command(torture_binary(), bug),
        };
        command.env_clear().envs(self.environment.iter().cloned());
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        command
    }
}

/// A running broker, killed when dropped.
#[derive(Debug)]
pub struct BrokerProcess {
    child: Child,
    addresses: Addresses,
    log: Log,
    /// From the start of the process until it said that it is ready.
    pub ready_after: Duration,
}

/// The last lines of standard error.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LOG_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

impl BrokerProcess {
    /// Starts `command`, which must be a `longwire-broker`, and waits until it is ready or has ended.
    ///
    /// # Panics
    ///
    /// If it does neither.
    pub fn spawn(command: &mut Command) -> Result<BrokerProcess, Refused> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().expect("the broker's binary can be started");
        let (log, ready) = follow(&mut child);
        match ready.recv_timeout(PATIENCE) {
            Ok(line) => {
                let ready_after = began.elapsed();
                let addresses = Addresses::parse(&line)
                    .unwrap_or_else(|| panic!("no addresses in the broker's line {line:?}"));
                Ok(BrokerProcess { child, addresses, log, ready_after })
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = ended(&mut child, &log, PATIENCE);
                Err(Refused { code: status.code(), stderr: log.text() })
            }
            Err(RecvTimeoutError::Timeout) => {
                end(&mut child);
                panic!("the broker is not ready after {PATIENCE:?}:\n{}", log.text())
            }
        }
    }

    /// Where its planes are.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The address to give a client.
    pub fn control(&self) -> String {
        self.addresses.control.to_string()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last lines it wrote.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the broker still runs");
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    ///
    /// With what it wrote, if it does not end.
    pub fn wait(&mut self) -> ExitStatus {
        ended(&mut self.child, &self.log, PATIENCE)
    }

    /// How it ended, where it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Kills it with -9 and waits until it is gone.
    pub fn kill(mut self) {
        end(&mut self.child);
    }

    /// Stops it with SIGTERM; the time it took to end.
    ///
    /// # Panics
    ///
    /// With what it wrote, if it does not end with status 0.
    pub fn stop(self) -> Duration {
        self.stop_within(PATIENCE)
    }

    fn stop_within(mut self, limit: Duration) -> Duration {
        let began = Instant::now();
        self.signal(Signal::TERM);
        let status = ended(&mut self.child, &self.log, limit);
        let took = began.elapsed();
        assert!(status.success(), "SIGTERM ended with {status}:\n{}", self.log());
        took
    }

    /// What the process takes of the machine now.
    ///
    /// # Panics
    ///
    /// If the process is gone.
    pub fn figures(&self) -> ProcessFigures {
        ProcessFigures::of(self.pid()).unwrap_or_else(|error| {
            panic!("cannot read about the broker: {error}; its log:\n{}", self.log())
        })
    }

    /// The value of a metric, by its name and labels as they are printed; 0 where it is not there.
    ///
    /// # Panics
    ///
    /// If the metrics cannot be had.
    pub fn metric(&self, name: &str) -> f64 {
        let text = http_get(self.addresses.http, "/metrics").expect("metrics");
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value).unwrap_or(0.0)
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        end(&mut self.child);
        if std::thread::panicking() {
            eprintln!("the broker's log:\n{}", self.log());
        }
    }
}

/// How the broker ends by itself.
///
/// # Panics
///
/// With its log, if it does not within `limit`. It has then been killed.
fn ended(child: &mut Child, log: &Log, limit: Duration) -> ExitStatus {
    wait_within(child, limit).unwrap_or_else(|| {
        end(child);
        panic!("the broker has not ended after {limit:?}:\n{}", log.text())
    })
}

/// Kills it with -9 and waits until it is gone. Not for ever: the kernel may keep it in a call.
fn end(child: &mut Child) {
    let _ = child.kill();
    if wait_within(child, PATIENCE).is_none() {
        eprintln!("broker {} is still there {PATIENCE:?} after kill -9", child.id());
    }
}

/// How the process ends, if it does within `limit`.
fn wait_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let began = Instant::now();
    loop {
        let status = child.try_wait().expect("a child's status");
        if status.is_some() || began.elapsed() >= limit {
            return status;
        }
        // How long a broker takes to end is measured.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads the child's log to its end on a thread, so that the child never waits for us. Sends the line
/// that says it is ready.
fn follow(child: &mut Child) -> (Log, Receiver<String>) {
    let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
    let (log, (sender, ready)) = (Log::default(), channel());
    let lines = log.clone();
    std::thread::spawn(move || {
        let mut sender = Some(sender);
        for line in stderr.lines().map_while(Result::ok) {
            lines.push(line.clone());
            if line.contains(" ready data=")
                && let Some(sender) = sender.take()
            {
                let _ = sender.send(line);
            }
        }
    });
    (log, ready)
}

/// The answer to a GET, head and body.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rustix::process::test_kill_process;

    use super::*;

    #[test]
    fn a_broker_that_ignores_sigterm_is_killed_and_fails_the_test_with_its_log() {
        let ready = "x ready data=127.0.0.1:1 control=127.0.0.1:2 http=127.0.0.1:3";
        let mut command = Command::new("sh");
        command.args(["-c", &format!("trap '' TERM; echo {ready} >&2; exec sleep 1000")]);
        let broker = BrokerProcess::spawn(&mut command).expect("it says that it is ready");
        let process = Pid::from_child(&broker.child);
        let stopped = catch_unwind(AssertUnwindSafe(|| broker.stop_within(Duration::ZERO)));
        let problem = stopped.expect_err("it has not stopped");
        let problem = problem.downcast_ref::<String>().expect("a message");
        assert!(problem.contains("has not ended") && problem.contains(ready), "{problem}");
        assert!(test_kill_process(process).is_err(), "it still runs");
    }
}
