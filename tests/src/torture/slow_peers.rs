//! Peers that trickle, do not read, vanish or reset, in numbers, beside a pair that behaves.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use longwire_proto::data::{self, request_header::Request};
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;

use super::healthy_pair::HealthyPair;
use super::{Options, PATIENCE, Report, start};
use crate::broker_process::{BrokerCommand, BrokerProcess};
use crate::frame_client::{FrameClient, encode, fetch, hello, record};
use crate::noise;
use crate::vanish::{reset, vanish};

/// Memory a broker may take, in MiB: what is its own, and what its sockets hold.
const MEMORY_MIB_MAX: f64 = 256.0;
/// How much slower the pair's 99th percentile may get.
const SLOWER_MAX: f64 = 2.0;
/// Another look is taken where it seems to be: a busy machine is, too, now and then.
const WINDOWS_MAX: u32 = 3;
/// Descriptors of either process beside those of the slow peers.
const SPARE_FILES: u64 = 1_000;
/// Files of its store a broker may have opened meanwhile.
const STORE_FILES: usize = 32;
/// A build that is not optimised is held to memory alone, with a tenth of the peers.
const SCALE: u64 = if cfg!(debug_assertions) { 10 } else { 1 };
const WINDOW: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1_000 } else { 5_000 });
const RESET_PACE: Duration = Duration::from_millis(500);
const LOWEST_PRIORITY: i32 = 19;
/// Longer than a system delays an acknowledgement.
const ACKNOWLEDGED_AFTER: Duration = Duration::from_millis(300);
const TRICKLE: Duration = Duration::from_secs(1);
const CONNECTIONS: &str = "longwire_connections";

/// How peers misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Send one byte a second and never finish, half of them not even their hello.
    Trickle,
    /// Ask for much and read nothing.
    StuckReader,
    /// Are gone in the middle of a frame without the broker being told.
    HalfOpen,
    /// Reset their connections in the middle of a frame, again and again.
    Reset,
}

impl Kind {
    const ALL: [(Kind, &'static str, u64); 4] = [
        (Kind::Trickle, "trickle", 5_000),
        (Kind::StuckReader, "stuck_reader", 500),
        (Kind::HalfOpen, "half_open", 1_000),
        (Kind::Reset, "reset", 100),
    ];
}

pub(super) fn run(options: &Options) -> Report {
    let mut report = Report::new("slow-peers", options);
    let files = raise_file_limit();
    for _ in 0..options.count.unwrap_or(1) {
        report.cycles += 1;
        for (kind, name, count) in Kind::ALL {
            if let (Kind::HalfOpen, Err(error)) = (kind, vanish_once()) {
                report.skip(format!("{name}: connections cannot vanish here: {error}"));
                continue;
            }
            let wanted = count / SCALE;
            let count = wanted.min(files.saturating_sub(SPARE_FILES));
            if count < wanted {
                report.skip(format!("{name}: {count} of {wanted}, for {files} files are allowed"));
            }
            if let Err(problem) = endure(kind, name, count, options, &mut report) {
                report.violation(format!("{name}: {problem}"));
            }
        }
    }
    report
}

fn vanish_once() -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    vanish(TcpStream::connect(listener.local_addr()?)?)
}

/// The files this process may have open, which it then may.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    limit.current.unwrap_or(u64::MAX)
}

fn endure(
    kind: Kind,
    name: &str,
    count: u64,
    options: &Options,
    report: &mut Report,
) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let command = BrokerCommand::new(folder.path())
        .plant(options.plant)
        .set("storage.segment_bytes=64MiB")
        .set("limits.hello_timeout=5s")
        .set("limits.frame_timeout=10s");
    let broker = start(&command)?;
    fill_topic(&broker);
    let pair = HealthyPair::start(broker.control())?;
    let baseline = pair.p99_over(WINDOW)?.max(pair.p99_over(WINDOW)?);
    let (connections, files) = (broker.metric(CONNECTIONS), broker.figures().descriptors);
    let peers = SlowPeers::start(kind, count, &broker)?;
    let mut memory = Memory::default();
    let mut slowest = Duration::MAX;
    for _ in 0..WINDOWS_MAX {
        memory.look(&broker);
        slowest = slowest.min(pair.p99_over(WINDOW)?);
        memory.look(&broker);
        if slowest <= baseline.mul_f64(SLOWER_MAX) {
            break;
        }
    }
    report.figure(&format!("{name}_peers"), count);
    report.figure(&format!("{name}_baseline_p99_us"), baseline.as_micros() as u64);
    report.figure(&format!("{name}_slow_p99_us"), slowest.as_micros() as u64);
    report.figure(&format!("{name}_rss_mib"), memory.own_mib.round());
    report.figure(&format!("{name}_sockets_mib"), memory.sockets_mib.map(f64::round));
    if memory.own_mib + memory.sockets_mib.unwrap_or(0.0) > MEMORY_MIB_MAX {
        report.violation(format!("{name}: {memory:?}"));
    }
    if slowest > baseline.mul_f64(SLOWER_MAX) && !cfg!(debug_assertions) {
        report.violation(format!("{name}: the pair's p99 went from {baseline:?} to {slowest:?}"));
    }
    drop(peers);
    await_gone(&broker, connections, files)?;
    pair.stop()
}

/// Waits until the broker has let go of everybody but the pair.
fn await_gone(broker: &BrokerProcess, connections: f64, files: usize) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let now = (broker.metric(CONNECTIONS), broker.figures().descriptors);
        if now.0 <= connections && now.1 <= files + STORE_FILES {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            let before = (connections, files);
            return Err(format!("connections and descriptors were {before:?}, and stay {now:?}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// 32 MiB in one queue, to be asked for.
fn fill_topic(broker: &BrokerProcess) {
    let mut client = FrameClient::connect(broker.addresses().data);
    let body = noise(3, 1 << 20);
    for _ in 0..32 {
        client.produce("t", 0, &record("t", 0, &body));
    }
}

/// The most that was seen.
#[derive(Debug, Default)]
struct Memory {
    own_mib: f64,
    /// What the sockets of the data plane have queued; `None` where `ss` cannot tell.
    sockets_mib: Option<f64>,
}

impl Memory {
    fn look(&mut self, broker: &BrokerProcess) {
        self.own_mib = self.own_mib.max(broker.figures().anonymous_mib());
        if let Some(bytes) = socket_bytes(broker.addresses().data.port()) {
            let mib = bytes as f64 / f64::from(1 << 20);
            self.sockets_mib = Some(self.sockets_mib.unwrap_or(0.0).max(mib));
        }
    }
}

/// What the sockets at a port hold for reading and writing, and have set aside.
fn socket_bytes(port: u16) -> Option<u64> {
    let output = Command::new("ss").args(["-tmnH", &format!("sport = :{port}")]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let memory = text.split("skmem:(").skip(1).filter_map(|rest| rest.split(')').next());
    let of_one = |fields: &str| -> u64 {
        let amounts = fields.split(',').filter_map(|field| {
            let field = field.strip_prefix(['r', 'w', 'f'])?;
            field.parse::<u64>().ok()
        });
        amounts.sum()
    };
    Some(memory.map(of_one).sum())
}

/// They misbehave until they are dropped.
struct SlowPeers {
    /// Runs those that are only slow.
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl SlowPeers {
    fn start(kind: Kind, count: u64, broker: &BrokerProcess) -> Result<SlowPeers, String> {
        let address = broker.addresses().data;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().on_thread_start(yield_to_the_broker);
        let runtime = builder.build().map_err(|error| error.to_string())?;
        let mut peers = SlowPeers { runtime, stop: Arc::default(), threads: Vec::new() };
        let before = broker.metric(CONNECTIONS);
        let expected = match kind {
            Kind::Reset => before,
            _ => before + 0.9 * count as f64,
        };
        let said = |error: std::io::Error| format!("connections that vanish: {error}");
        let mut vanishing = Vec::new();
        for number in 0..count {
            // Half of them have said hello.
            let greets = number % 2 == 0;
            match kind {
                Kind::Trickle => drop(peers.runtime.spawn(trickle(address, greets))),
                Kind::StuckReader => drop(peers.runtime.spawn(read_nothing(address))),
                Kind::HalfOpen => vanishing.push(half_a_frame(address, greets).map_err(said)?),
                Kind::Reset => peers.reset_repeatedly(address, greets),
            }
        }
        // What the broker acknowledges only now would be answered with a reset.
        std::thread::sleep(ACKNOWLEDGED_AFTER);
        vanishing.into_iter().try_for_each(vanish).map_err(said)?;
        let began = Instant::now();
        while broker.metric(CONNECTIONS) < expected {
            if began.elapsed() > PATIENCE {
                return Err(format!("only {} connections came about", broker.metric(CONNECTIONS)));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(peers)
    }

    fn reset_repeatedly(&mut self, address: SocketAddr, greets: bool) {
        let stop = self.stop.clone();
        self.threads.push(std::thread::spawn(move || {
            yield_to_the_broker();
            while !stop.load(Relaxed) {
                if half_a_frame(address, greets).and_then(reset).is_err() {
                    return; // The broker is gone, which the pair will say.
                }
                // Never all of them at once.
                std::thread::sleep(RESET_PACE.mul_f64(0.5 + fastrand::f64()));
            }
        }));
    }
}

impl Drop for SlowPeers {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Peers are on other machines: what they do themselves must not slow the broker down, nor the pair.
fn yield_to_the_broker() {
    // On Linux this is of the calling thread alone. Lowering it is always allowed.
    let _ = setpriority_process(None, LOWEST_PRIORITY);
}

/// The beginning of a request to store 1 MiB.
fn unfinished_frame() -> Vec<u8> {
    let run = data::ProduceRun { topic: "t".into(), queue: 0, bytes: 1 << 20 };
    let request = data::ProduceRequest { durability: 0, runs: vec![run] };
    let mut frame = encode(2, Request::Produce(request), &vec![0; 1 << 20]);
    frame.truncate(4096);
    frame
}

/// Sends a byte now and then; once it is thrown out, from the beginning.
async fn trickle(address: SocketAddr, greets: bool) {
    let (greeting, unfinished) = (encode(1, hello(), &[]), unfinished_frame());
    loop {
        tokio::time::sleep(TRICKLE.mul_f64(fastrand::f64())).await;
        let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else { continue };
        let bytes = match greets {
            true if stream.write_all(&greeting).await.is_ok() => &unfinished[..],
            true => continue,
            false => &greeting[..greeting.len() - 1],
        };
        let mut answer = [0; 256];
        for byte in bytes {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            let closed = tokio::time::timeout(TRICKLE, stream.read(&mut answer)).await;
            if matches!(closed, Ok(Ok(0) | Err(_))) {
                break;
            }
        }
    }
}

/// Asks for 320 MiB and takes none of it.
async fn read_nothing(address: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(address).await?;
    stream.write_all(&encode(1, hello(), &[])).await?;
    for id in 2..22 {
        let request = Request::Fetch(fetch("t", &[(0, 0)], 16 << 20, PATIENCE));
        stream.write_all(&encode(id, request, &[])).await?;
    }
    std::future::pending().await
}

/// A connection on which a frame has begun: a hello, or what comes after it.
fn half_a_frame(address: SocketAddr, greets: bool) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let greeting = encode(1, hello(), &[]);
    if !greets {
        stream.write_all(&greeting[..greeting.len() / 2])?;
        return Ok(stream);
    }
    stream.write_all(&greeting)?;
    // The answer is small, and comes as a whole.
    let answer = stream.read(&mut [0; 256])?;
    stream.write_all(&unfinished_frame()[..40])?;
    if answer > 0 { Ok(stream) } else { Err(ErrorKind::UnexpectedEof.into()) }
}
