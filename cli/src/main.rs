//! `longwire`: the command line of the Longwire message broker.

mod bench;
mod confirm;
mod connection;
mod consume;
mod error;
mod group;
mod interrupt;
mod output;
mod point;
mod produce;
mod quickstart;
mod size;
mod topic;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::error::{EXIT_CODES, Failure};

/// Longwire, a message broker whose log goes straight from disk to the consumer's socket.
#[derive(Debug, Parser)]
#[command(name = "longwire", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
struct Global {
    /// The broker's control plane; it tells where its data plane is. Default: the environment's
    /// LONGWIRE_BROKER, or 127.0.0.1:7651.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        default_value_t = default_broker(std::env::var_os("LONGWIRE_BROKER")),
        hide_default_value = true,
        help_heading = "Global options"
    )]
    broker: String,
    /// Results as JSON on standard output.
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// No progress bars, summaries and warnings, only results and errors.
    #[arg(short, long, global = true, help_heading = "Global options")]
    quiet: bool,
}

/// The broker where the command line names none. As clap's own `env` a variable would count as given
/// there: an empty one too, and every usage line would show it.
fn default_broker(variable: Option<OsString>) -> String {
    match variable.filter(|address| !address.is_empty()) {
        Some(address) => address.to_string_lossy().into_owned(),
        None => "127.0.0.1:7651".to_owned(),
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create, list, change and delete topics.
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// See how far groups are, move and delete them.
    #[command(subcommand)]
    Group(group::GroupCommand),
    Produce(produce::ProduceArgs),
    Consume(consume::ConsumeArgs),
    /// Measure a broker: throughput, latency, and whether everything arrives.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    Quickstart(quickstart::QuickstartArgs),
    /// Print a completion script for a shell.
    ///
    /// For example: longwire completions bash > ~/.local/share/bash-completion/completions/longwire
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !cli.global.quiet {
        show_warnings();
    }
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// What the client does by itself, such as reconnecting, would otherwise look like standing still.
fn show_warnings() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_env_var("LONGWIRE_LOG")
        .with_default_directive(tracing_subscriber::filter::LevelFilter::WARN.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        // Told on standard error, where a closed one would end the client's task by a panic.
        .log_internal_errors(false)
        .init();
}

fn start(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let outcome = runtime.block_on(dispatch(cli));
    // A thread that still waits for standard input must not hold up the exit.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Topic(command) => topic::run(&global, command).await,
        Command::Group(command) => group::run(&global, command).await,
        Command::Produce(args) => Box::pin(produce::run(&global, args)).await,
        Command::Consume(args) => Box::pin(consume::run(&global, args)).await,
        Command::Bench(command) => Box::pin(bench::run(&global, command)).await,
        Command::Quickstart(args) => Box::pin(quickstart::run(&global, args)).await,
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "longwire", &mut script);
    output::write(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn command_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usual_command_lines_parse() {
        for line in [
            "longwire topic create orders --queues 4 --durability write --retention 7d",
            "longwire topic update orders --retention-bytes 10GiB --json",
            "longwire group reset billing --topic orders --queue 1 --queue 2 --to -15m --dry-run",
            "longwire group reset billing --topic orders --to 2026-01-02T03:04:05Z --yes",
            "longwire produce orders a b --key-separator : --tag t --property a=b --rate 10",
            "longwire produce orders --split 64KiB --compression zstd --batch 1MiB",
            "longwire consume orders --from -1h --follow --tag a||b --format json",
            "longwire consume orders --group g --max 10 --timeout 5s",
            "longwire consume orders --queue 1 --from 17 --print key,offset,body",
            "longwire bench produce --rate 20k --size 100..10KiB --keys 100 --duration 30s --json",
            "longwire bench consume --topic orders --clients 4 --messages 1000",
            "longwire bench end-to-end --rate 500 -n 100 --warmup 0s --hdr a.hgrm --html a.html",
            "longwire quickstart . --json",
            "longwire completions zsh",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn command_lines_without_sense_are_usage_errors() {
        for line in [
            "longwire",
            "longwire topic create",
            "longwire topic update orders",
            "longwire produce orders --key a --key-separator b",
            "longwire produce orders --split 0",
            "longwire produce orders --rate 0",
            "longwire produce orders --property novalue",
            "longwire produce orders --tag=",
            "longwire produce orders --key=",
            "longwire produce orders --tag a||b",
            "longwire produce orders --tag *",
            "longwire produce orders --tag=\u{a0}a",
            "longwire consume orders --group g --queue 1",
            "longwire consume orders --format nonsense",
            "longwire consume orders --print nonsense",
            "longwire group reset billing --topic orders --to yesterday",
            "longwire bench",
            "longwire bench produce --rate 0",
            "longwire bench produce --rate 10 --in-flight 5",
            "longwire bench produce --messages 5 --duration 5s",
            "longwire bench produce --duration 0s",
            "longwire bench produce --size 5MiB",
            "longwire bench produce --topic orders --queues 4",
            "longwire bench end-to-end --clients 0",
            "longwire bench consume --warmup 1s",
            "longwire bench consume --topic orders --size 2KiB",
            "longwire bench produce --warmup 1000y",
        ] {
            assert_eq!(parse(line).map(|_| ()).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
