//! A broker starts, stops and is configured as its first page promises.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use longwire_client::{Client, Durability};
use longwire_tests::binary::broker_binary;
use longwire_tests::broker_process::{Addresses, BrokerCommand, BrokerProcess};
use longwire_tests::history::read_topic;
use longwire_tests::load::Load;
use longwire_tests::wait::within;

/// What is promised is promised of an optimised broker.
const SCALE: u64 = if cfg!(debug_assertions) { 10 } else { 1 };
/// How soon a broker on an empty or cleanly closed store is ready.
const READY_WITHIN: Duration = Duration::from_millis(200 * SCALE);
const STOPPED_WITHIN: Duration = Duration::from_secs(SCALE);
const PATIENCE: Duration = Duration::from_secs(60);
/// The exit status of a broker whose store is in use.
const LOCKED: i32 = 73;

/// `longwire-broker` without arguments in `folder`; only the ports are not the usual ones.
fn without_arguments(folder: &Path) -> Command {
    let mut command = Command::new(broker_binary());
    command.current_dir(folder).env_clear();
    for plane in ["DATA", "CONTROL", "HTTP"] {
        command.env(format!("LONGWIRE_LISTEN_{plane}"), "127.0.0.1:0");
    }
    command
}

/// Produces a few hundred messages, stops the broker meanwhile or after, and checks what is there
/// when it runs again.
async fn nothing_is_lost_by_sigterm(durability: Durability, broker_goes_first: bool) {
    let folder = tempfile::tempdir().unwrap();
    let command = BrokerCommand::new(folder.path())
        .on(Addresses::fixed())
        .set("storage.segment_bytes=16MiB")
        .set("storage.flush_interval=60s");
    let broker = command.start();
    let client = Client::connect(broker.control()).await.unwrap();
    let load = Load::start(&client, "t", 3, durability, Duration::ZERO).await;
    within("acknowledgements", PATIENCE, load.reaches(2_000)).await;
    let (history, stopped, broker) = if broker_goes_first {
        let stopped = tokio::task::spawn_blocking(|| broker.stop()).await.unwrap();
        let broker = command.start();
        within("more acknowledgements", PATIENCE, load.reaches(load.acked() + 100)).await;
        (load.stop().await, stopped, broker)
    } else {
        let history = load.stop().await;
        let stopped = broker.stop();
        (history, stopped, command.start())
    };
    let verified = history.verify(&read_topic(&client, "t").await);
    println!("{durability:?}: stopped within {stopped:?}, {verified:?}");
    assert!(stopped < STOPPED_WITHIN, "{stopped:?}");
    assert!(!broker.log().contains("unclean"), "{}", broker.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_ends_within_a_second_and_loses_nothing() {
    nothing_is_lost_by_sigterm(Durability::Flush, true).await;
    nothing_is_lost_by_sigterm(Durability::Write, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acked_as_written_is_there_after_sigterm_although_never_flushed_before() {
    nothing_is_lost_by_sigterm(Durability::Write, false).await;
}

#[tokio::test]
async fn without_arguments_it_serves_from_longwire_data_and_is_ready_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut empty, mut closed) = (Vec::new(), Vec::new());
    // The best of a few: other suites may be busy beside this one.
    for round in 0..3 {
        let broker = BrokerProcess::spawn(&mut without_arguments(folder.path())).unwrap();
        let times = if round == 0 { &mut empty } else { &mut closed };
        times.push(broker.ready_after);
        let client = Client::connect(broker.control()).await.unwrap();
        let load = Load::start(&client, "t", 1, Durability::Flush, Duration::ZERO).await;
        within("acknowledgements", PATIENCE, load.reaches(200)).await;
        load.stop().await;
        assert!(broker.stop() < STOPPED_WITHIN);
    }
    for _ in 0..2 {
        let other = tempfile::tempdir().unwrap();
        let broker = BrokerProcess::spawn(&mut without_arguments(other.path())).unwrap();
        empty.push(broker.ready_after);
    }
    println!("ready after {empty:?} on an empty store, {closed:?} on a closed one");
    let made: Vec<_> =
        folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(made, ["longwire-data"]);
    for times in [empty, closed] {
        assert!(times.iter().min().unwrap() < &READY_WITHIN, "{times:?}");
    }
}

#[tokio::test]
async fn a_second_broker_on_the_folder_is_refused_and_the_first_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let command = BrokerCommand::new(folder.path()).set("storage.segment_bytes=16MiB");
    let first = command.start();
    let client = Client::connect(first.control()).await.unwrap();
    let load = Load::start(&client, "t", 1, Durability::Flush, Duration::ZERO).await;
    for _ in 0..3 {
        let refused = command.try_start().unwrap_err();
        assert_eq!(refused.code, Some(LOCKED), "{}", refused.stderr);
        let folder = folder.path().to_string_lossy();
        assert!(refused.stderr.contains(&*folder), "{}", refused.stderr);
    }
    within("acknowledgements", PATIENCE, load.reaches(load.acked() + 100)).await;
    let history = load.stop().await;
    let verified = history.verify(&read_topic(&client, "t").await);
    assert_eq!((verified.unknown, verified.repeated), (0, 0));
}

fn print_config(command: &mut Command) -> String {
    let printed = command.arg("--print-config").output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap()
}

#[test]
fn flags_override_the_environment_and_that_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broker.toml");
    std::fs::write(
        &file,
        "[broker]\ndefault_queues = 3\n[limits]\nconnections_max = 30\n[log]\nfilter = \"warn\"\n",
    )
    .unwrap();
    let mut command = Command::new(broker_binary());
    command.env_clear().env("LONGWIRE_CONFIG", &file);
    command.env("LONGWIRE_BROKER_DEFAULT_QUEUES", "4").env("LONGWIRE_LIMITS_CONNECTIONS_MAX", "40");
    command.args(["--set", "broker.default_queues=5"]);
    let printed = print_config(&mut command);
    for line in ["default_queues = 5", "connections_max = 40", "filter = \"warn\""] {
        assert!(printed.lines().any(|printed| printed == line), "{line} missing in\n{printed}");
    }

    // What is printed is a file that says the same.
    std::fs::write(&file, &printed).unwrap();
    let mut again = Command::new(broker_binary());
    assert_eq!(print_config(again.env_clear().arg("--config").arg(&file)), printed);
}

#[test]
fn a_printed_configuration_starts_the_broker_it_was_printed_by() {
    let folder = tempfile::tempdir().unwrap();
    let printed =
        print_config(without_arguments(folder.path()).env("LONGWIRE_LIMITS_CONNECTIONS_MAX", "77"));
    let file = folder.path().join("broker.toml");
    std::fs::write(&file, printed).unwrap();
    let mut command = Command::new(broker_binary());
    command.current_dir(folder.path()).env_clear().arg("--config").arg(&file);
    let broker = BrokerProcess::spawn(&mut command).unwrap();
    assert!(broker.stop() < STOPPED_WITHIN);
}
