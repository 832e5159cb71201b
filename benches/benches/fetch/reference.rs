//! What the machine gives without a broker: the lines the arms are held against.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use longwire_benches::{histogram, median, percentiles_us};
use rustix::event::epoll;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::measure::Plan;
use crate::process::thread_cpu;
use crate::store::ArmBroker;

/// One call of the bare servers, as the broker limits its own.
const SENDFILE_BYTES: usize = 1 << 20;
const COPY_BYTES: usize = 512 << 10;
/// What a fetch of one small record asks and gets.
const ECHO_REQUEST_BYTES: usize = 40;
const ECHO_ANSWER_BYTES: usize = 1060;

/// Medians of the rounds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reference {
    /// A loop of `sendfile` from a file to one connection.
    pub(crate) sendfile_cpu_ms_per_gb: f64,
    pub(crate) sendfile_mb_per_s: f64,
    /// A loop of `pread` and `write`.
    pub(crate) read_write_cpu_ms_per_gb: f64,
    pub(crate) read_write_mb_per_s: f64,
    /// The receiver of that `sendfile` where it copies the bytes.
    pub(crate) recv_cpu_ms_per_gb: f64,
    pub(crate) memcpy_mb_per_s: f64,
    /// A server that waits with epoll and answers a fetch's bytes with a small record's.
    pub(crate) epoll_echo_cpu_us: f64,
    pub(crate) epoll_echo_p50_us: f64,
    /// The same in a runtime of one thread.
    pub(crate) tokio_echo_cpu_us: f64,
    pub(crate) tokio_echo_p50_us: f64,
}

/// Measures all of them once.
pub(crate) fn round(plan: &Plan<'_>, file: &Path) -> io::Result<Reference> {
    let sendfile = stream(plan, file, plan.copy, send_file)?;
    let read_write = stream(plan, file, plan.copy, read_write)?;
    let received = stream(plan, file, true, send_file)?;
    let epoll = echo(plan, serve_epoll)?;
    let tokio = echo(plan, serve_tokio)?;
    Ok(Reference {
        sendfile_cpu_ms_per_gb: sendfile.server_ms_per_gb,
        sendfile_mb_per_s: sendfile.mb_per_s,
        read_write_cpu_ms_per_gb: read_write.server_ms_per_gb,
        read_write_mb_per_s: read_write.mb_per_s,
        recv_cpu_ms_per_gb: received.client_ms_per_gb,
        memcpy_mb_per_s: memcpy(),
        epoll_echo_cpu_us: epoll.0,
        epoll_echo_p50_us: epoll.1,
        tokio_echo_cpu_us: tokio.0,
        tokio_echo_p50_us: tokio.1,
    })
}

/// The medians of some rounds.
pub(crate) fn middle(rounds: &[Reference]) -> Reference {
    let middle = |figure: fn(&Reference) -> f64| median(rounds.iter().map(figure).collect());
    Reference {
        sendfile_cpu_ms_per_gb: middle(|r| r.sendfile_cpu_ms_per_gb),
        sendfile_mb_per_s: middle(|r| r.sendfile_mb_per_s),
        read_write_cpu_ms_per_gb: middle(|r| r.read_write_cpu_ms_per_gb),
        read_write_mb_per_s: middle(|r| r.read_write_mb_per_s),
        recv_cpu_ms_per_gb: middle(|r| r.recv_cpu_ms_per_gb),
        memcpy_mb_per_s: middle(|r| r.memcpy_mb_per_s),
        epoll_echo_cpu_us: middle(|r| r.epoll_echo_cpu_us),
        epoll_echo_p50_us: middle(|r| r.epoll_echo_p50_us),
        tokio_echo_cpu_us: middle(|r| r.tokio_echo_cpu_us),
        tokio_echo_p50_us: middle(|r| r.tokio_echo_p50_us),
    }
}

struct Stream {
    server_ms_per_gb: f64,
    client_ms_per_gb: f64,
    mb_per_s: f64,
}

type Send = fn(&TcpStream, &File, u64, &mut [u8]) -> io::Result<usize>;

/// Sends a file round and round for a moment, by a thread on the servers' core.
fn stream(plan: &Plan<'_>, file: &Path, copy: bool, send: Send) -> io::Result<Stream> {
    let file = File::open(file)?;
    let length = file.metadata()?.len() / SENDFILE_BYTES as u64 * SENDFILE_BYTES as u64;
    let (listener, address) = listen()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            plan.pinning.serve();
            let connection = listener.accept()?.0;
            let mut buffer = vec![0; COPY_BYTES];
            let (began, cpu, mut sent) = (Instant::now(), thread_cpu(), 0);
            while began.elapsed() < plan.moment {
                sent += send(&connection, &file, sent % length, &mut buffer)? as u64;
            }
            let ms = (thread_cpu() - cpu).as_secs_f64() * 1e3;
            io::Result::Ok((ms / (sent as f64 / 1e9), sent as f64 / 1e6, began.elapsed()))
        });
        plan.pinning.consume();
        let connection = TcpStream::connect(address)?;
        let flags = if copy { RecvFlags::empty() } else { RecvFlags::TRUNC };
        let mut scratch = vec![0; 1 << 20];
        let (cpu, mut received) = (thread_cpu(), 0);
        loop {
            let (_, bytes) = recv(&connection, &mut scratch[..], flags)?;
            if bytes == 0 {
                break;
            }
            received += bytes;
        }
        let client_ms_per_gb = (thread_cpu() - cpu).as_secs_f64() * 1e12 / received as f64;
        let (server_ms_per_gb, megabytes, took) = joined(server.join())?;
        Ok(Stream { server_ms_per_gb, client_ms_per_gb, mb_per_s: megabytes / took.as_secs_f64() })
    })
}

fn send_file(to: &TcpStream, from: &File, at: u64, _buffer: &mut [u8]) -> io::Result<usize> {
    let mut at = at;
    Ok(rustix::fs::sendfile(to, from, Some(&mut at), SENDFILE_BYTES)?)
}

fn read_write(mut to: &TcpStream, from: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let read = from.read_at(buffer, at)?;
    to.write_all(&buffer[..read])?;
    Ok(read)
}

/// CPU time of the server for each round trip, and the median round trip, in microseconds.
fn echo(plan: &Plan<'_>, serve: Serve) -> io::Result<(f64, f64)> {
    let mut latency = histogram();
    let cpu_us = beside_echo(plan, serve, |connection| {
        let began = Instant::now();
        trips(connection, &mut latency, || began.elapsed() < plan.moment)
    })?;
    Ok((cpu_us, percentiles_us(&latency)[0]))
}

/// Answers one connection until it ends; how often.
type Serve = fn(TcpListener) -> io::Result<u64>;

/// Runs an echo server for as long as `client` talks to it; its CPU time for each round trip.
fn beside_echo(
    plan: &Plan<'_>,
    serve: Serve,
    client: impl FnOnce(&mut TcpStream) -> io::Result<()>,
) -> io::Result<f64> {
    let (listener, address) = listen()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            plan.pinning.serve();
            let cpu = thread_cpu();
            let trips = serve(listener)?;
            io::Result::Ok((thread_cpu() - cpu).as_secs_f64() * 1e6 / trips.max(1) as f64)
        });
        plan.pinning.consume();
        let mut connection = TcpStream::connect(address)?;
        connection.set_nodelay(true)?;
        client(&mut connection)?;
        drop(connection);
        joined(server.join())
    })
}

/// Round trips of an epoll echo server on the core of a broker, alone and while the broker serves a
/// reader of evicted history: what anything that shares this core with that work has to bear.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EchoBeside {
    pub(crate) alone_us: [f64; 3],
    pub(crate) beside_us: [f64; 3],
}

/// Measures that over all rounds.
pub(crate) fn echo_beside(plan: &Plan<'_>, broker: &mut ArmBroker) -> io::Result<EchoBeside> {
    let [mut alone, mut beside] = [histogram(), histogram()];
    for _ in 0..plan.rounds {
        plan.restart_cold(broker, plan.sizes.history_end())?;
        beside_echo(plan, serve_epoll, |connection| {
            let began = Instant::now();
            trips(connection, &mut alone, || began.elapsed() < plan.moment)?;
            let while_reading = plan.beside_history(broker, |reading| {
                trips(connection, &mut beside, || reading.load(Relaxed))
            });
            while_reading.map(drop)
        })?;
    }
    let [alone_us, beside_us] = [alone, beside].each_ref().map(percentiles_us);
    Ok(EchoBeside { alone_us, beside_us })
}

/// Asks an echo server one thing after the other.
fn trips(
    connection: &mut TcpStream,
    latency: &mut Histogram<u64>,
    more: impl Fn() -> bool,
) -> io::Result<()> {
    let mut answer = [0; ECHO_ANSWER_BYTES];
    while more() {
        let sent = Instant::now();
        connection.write_all(&[1; ECHO_REQUEST_BYTES])?;
        connection.read_exact(&mut answer)?;
        latency.record(sent.elapsed().as_nanos() as u64).map_err(io::Error::other)?;
    }
    Ok(())
}

fn serve_epoll(listener: TcpListener) -> io::Result<u64> {
    let connection = listener.accept()?.0;
    connection.set_nodelay(true)?;
    connection.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&epoll, &connection, epoll::EventData::new_u64(0), events)?;
    let mut trips = 0;
    let mut ready = Vec::with_capacity(16);
    let mut request = [0; 4096];
    loop {
        ready.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut ready), None)?;
        match recv(&connection, &mut request[..], RecvFlags::empty()) {
            Ok((_, 0)) => return Ok(trips),
            Ok(_) => {
                send(&connection, &[1; ECHO_ANSWER_BYTES], SendFlags::NOSIGNAL)?;
                trips += 1;
            }
            Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn serve_tokio(listener: TcpListener) -> io::Result<u64> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut connection = listener.accept().await?.0;
        connection.set_nodelay(true)?;
        let (mut request, mut trips) = ([0; 4096], 0);
        while connection.read(&mut request).await? > 0 {
            connection.write_all(&[1; ECHO_ANSWER_BYTES]).await?;
            trips += 1;
        }
        Ok(trips)
    })
}

/// A listener with the congestion control of the run, which its connections inherit.
fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_congestion(crate::CONGESTION_CONTROL.as_bytes())?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(1)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// From and to memory that is in no cache.
fn memcpy() -> f64 {
    let from = vec![1_u8; 128 << 20];
    let mut to = vec![2_u8; from.len()];
    let began = Instant::now();
    to.copy_from_slice(std::hint::black_box(&from));
    std::hint::black_box(&to);
    from.len() as f64 / 1e6 / began.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}

fn joined<T>(result: std::thread::Result<io::Result<T>>) -> io::Result<T> {
    result.map_err(|_| io::Error::other("a reference server failed"))?
}
