//! `longwire-broker`: one broker, until it is told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use longwire_broker::config::{LogConfig, LogFormat, Sources, load};
use longwire_broker::{Broker, Config, StartError};
use longwire_storage::OpenError;
use tracing_subscriber::EnvFilter;

use offline::VerifyFlags;
use signals::StopSignals;

mod offline;
mod output;
mod signals;

/// Exit statuses, by sysexits(3).
mod exit {
    pub(super) const USAGE: u8 = 64;
    pub(super) const CORRUPT: u8 = 65;
    pub(super) const PORT_UNAVAILABLE: u8 = 69;
    pub(super) const SOFTWARE: u8 = 70;
    pub(super) const LOCKED: u8 = 73;
    pub(super) const IO: u8 = 74;
    /// What a shell sees of a process that SIGPIPE ended.
    pub(super) const BROKEN_PIPE: u8 = 141;
}

/// How long a broker whose store has failed may take to tell its clients.
const FAILED_STOP_TIMEOUT: Duration = Duration::from_millis(700);

/// The Longwire message broker. Without arguments it serves from ./longwire-data.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Settings are taken from a TOML file, then LONGWIRE_* variables, then flags; later ones win.
The variable of storage.segment_bytes is LONGWIRE_STORAGE_SEGMENT_BYTES.
--print-config shows every setting.

Exit status: 0 stopped as told, 64 usage or configuration, 65 the log is damaged,
69 a port is not available, 70 a fault, or a second signal while stopping (half a second or more
after the first), 73 the store is in use, 74 input/output failed,
141 nobody reads what --print-config prints."
)]
struct Flags {
    /// TOML file with settings; also LONGWIRE_CONFIG.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the store.
    #[arg(long, global = true, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Address of the data plane.
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    data_listen: Option<SocketAddr>,
    /// Address of the gRPC control plane.
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    control_listen: Option<SocketAddr>,
    /// Address of health and metrics.
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    http_listen: Option<SocketAddr>,
    /// Any setting, such as storage.segment_bytes=64MiB. Can be given several times; wins over the
    /// flags above.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the effective configuration as TOML and exit.
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What else there is to do than to serve.
#[derive(Debug, Subcommand)]
enum Command {
    Verify(VerifyFlags),
}

impl Flags {
    fn sources(&self) -> Sources {
        let mut settings = Vec::new();
        let addresses = [
            ("listen.data", self.data_listen),
            ("listen.control", self.control_listen),
            ("listen.http", self.http_listen),
        ];
        for (key, address) in addresses {
            settings.extend(address.map(|address| format!("{key}={address}")));
        }
        settings.extend(self.set.iter().cloned());
        Sources {
            file: self.config.clone(),
            environment: std::env::vars_os().collect(),
            data_dir: self.data_dir.clone(),
            settings,
        }
    }
}

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // Nothing can be done where not even that can be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    let loaded = match load(&flags.sources()) {
        Ok(loaded) => loaded,
        Err(error) => {
            output::complain(&error.to_string());
            return ExitCode::from(exit::USAGE);
        }
    };
    if flags.print_config {
        loaded.warnings.iter().for_each(|warning| output::complain(warning));
        return print_config(&loaded.config);
    }
    if let Err(message) = start_logging(&loaded.config.log) {
        output::complain(&message);
        return ExitCode::from(exit::USAGE);
    }
    if let Some(Command::Verify(flags)) = &flags.command {
        return offline::run(&loaded.config.data_dir, flags);
    }
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(exit::SOFTWARE, &format!("cannot start: {error}"));
        }
    };
    runtime.block_on(run(loaded.config))
}

fn print_config(config: &Config) -> ExitCode {
    match config.to_toml() {
        Ok(text) => output::print(&text).err().unwrap_or(ExitCode::SUCCESS),
        Err(error) => {
            let dir = &config.data_dir;
            output::complain(&format!("data_dir {dir:?} cannot be said in TOML: {error}"));
            ExitCode::from(exit::USAGE)
        }
    }
}

/// Serves until a signal, or until the store fails.
async fn run(config: Config) -> ExitCode {
    let began = Instant::now();
    let folder = config.data_dir.clone();
    // Before anything can be interrupted.
    let mut signals = match StopSignals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(exit::SOFTWARE, &format!("cannot listen to signals: {error}")),
    };
    let started = tokio::select! {
        started = Broker::start(config) => started,
        _ = signals.next() => return ExitCode::SUCCESS,
    };
    let broker = match started {
        Ok(broker) => broker,
        Err(error) => return fail(exit_status(&error), &error.to_string()),
    };
    tracing::info!(
        data = %broker.data_addr(),
        control = %broker.control_addr(),
        http = %broker.http_addr(),
        folder = %folder.display(),
        took_ms = began.elapsed().as_millis() as u64,
        "ready"
    );
    tokio::select! {
        reason = broker.failed() => {
            let message = "the store has failed; stopping, so that a restart can recover it";
            let status = fail(exit::IO, &format!("{message}: {reason}"));
            let _ = tokio::time::timeout(FAILED_STOP_TIMEOUT, broker.shutdown()).await;
            return status;
        }
        signal = signals.next() => tracing::info!("{signal}: stopping"),
    }
    let began = Instant::now();
    tokio::select! {
        closed = broker.shutdown() => match closed {
            Ok(()) => {
                tracing::info!(took_ms = began.elapsed().as_millis() as u64, "stopped");
                ExitCode::SUCCESS
            }
            Err(error) => {
                let message = "stopped, but the store was not closed cleanly";
                fail(exit::IO, &format!("{message}: {error}"))
            }
        },
        () = signals.second() => {
            let message = "a second signal: stopping at once; the next start recovers the store";
            fail(exit::SOFTWARE, message)
        }
    }
}

/// Says why the exit status is not 0: in the log, or beside it where its filter leaves that out.
fn fail(status: u8, message: &str) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{message}");
    } else {
        output::complain(message);
    }
    ExitCode::from(status)
}

fn exit_status(error: &StartError) -> u8 {
    match error {
        StartError::Config(_)
        | StartError::CongestionControl { .. }
        | StartError::FewDescriptors { .. }
        | StartError::Store(OpenError::Config(_)) => exit::USAGE,
        StartError::Listen { .. } => exit::PORT_UNAVAILABLE,
        StartError::Store(OpenError::Locked { .. }) => exit::LOCKED,
        StartError::Store(OpenError::Corrupt { .. } | OpenError::Version { .. }) => exit::CORRUPT,
        StartError::Store(_) => exit::IO,
        _ => exit::SOFTWARE,
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let how = "give IP:PORT, such as 0.0.0.0:7650; names are not looked up";
    text.parse().map_err(|_| how.to_owned())
}

/// Whether standard error is a terminal with colours, and they are wanted (no-color.org).
fn has_colours() -> bool {
    let is_unset = |name| std::env::var_os(name).is_none_or(|value| value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    std::io::IsTerminal::is_terminal(&std::io::stderr()) && is_unset("NO_COLOR") && !is_dumb
}

fn start_logging(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|error| format!("log.filter {:?} cannot be used: {error}", config.filter))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Told on standard error, where a closed one would end the thread by a panic.
        .log_internal_errors(false);
    let started = match config.format {
        LogFormat::Json => lines.json().try_init(),
        LogFormat::Text => lines.with_ansi(has_colours()).try_init(),
    };
    started.map_err(|error| format!("cannot log: {error}"))
}
