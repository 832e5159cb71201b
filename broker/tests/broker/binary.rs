use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use longwire_storage::{Store, StoreConfig, TopicConfig};
use rustix::process::{Pid, Signal, kill_process};

fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longwire-broker"));
    command.env_clear().arg("--data-dir").arg(folder);
    for plane in ["data", "control", "http"] {
        command.arg(format!("--{plane}-listen")).arg("127.0.0.1:0");
    }
    command.args(["--set", "storage.segment_bytes=4MiB"]).stderr(Stdio::piped());
    command.stdout(Stdio::piped());
    command
}

/// The broker as another program starts it.
fn started_by(program: &[&str], folder: &Path) -> Command {
    let broker = command(folder);
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(broker.get_program()).args(broker.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A broker process, killed should the test fail, and what it logs once it is ready.
struct Process(Child, Option<JoinHandle<Vec<String>>>);

impl Process {
    /// Starts it and waits for the line that says it is ready, which is returned.
    fn start(folder: &Path) -> (Process, String) {
        Process::spawn(&mut command(folder))
    }

    fn spawn(command: &mut Command) -> (Process, String) {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.find(|line| line.as_ref().unwrap().contains("ready")).unwrap().unwrap();
        // What follows is read to the end, so that the process never waits for us.
        let log = std::thread::spawn(move || lines.map_while(Result::ok).collect());
        (Process(child, Some(log)), ready)
    }

    /// Stops it; what it has logged.
    fn stop(mut self) -> Vec<String> {
        self.signal(Signal::TERM);
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
        self.1.take().unwrap().join().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn it_says_where_it_listens_and_stops_within_a_second_of_any_signal_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        // Whoever runs the tests may have them ignore SIGHUP, which is inherited.
        let broker = &mut started_by(&["env", "--default-signal=HUP"], folder.path());
        let (mut process, ready) = Process::spawn(broker);
        for field in ["data=127.0.0.1:", "control=127.0.0.1:", "http=127.0.0.1:", "took_ms="] {
            assert!(ready.contains(field), "{field} missing in {ready}");
        }
        let began = Instant::now();
        process.signal(signal);
        assert_eq!(process.0.wait().unwrap().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
}

#[test]
fn a_signal_that_comes_several_times_at_once_is_one_signal() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, _) = Process::start(folder.path());
    let began = Instant::now();
    // As GNU timeout does, which signals the process and then its group.
    while process.0.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_millis(200) {
        process.signal(Signal::TERM);
    }
    assert_eq!(process.0.wait().unwrap().code(), Some(0));
}

#[test]
fn under_nohup_a_terminal_that_is_gone_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, _) = Process::spawn(&mut started_by(&["nohup"], folder.path()));
    process.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(process.0.try_wait().unwrap(), None);
    process.signal(Signal::TERM);
    assert_eq!(process.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_broker_on_the_folder_is_refused_even_where_the_ports_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (process, ready) = Process::start(folder.path());
    let (code, message) = run(&mut command(folder.path()));
    assert_eq!(code, Some(73), "{message}");
    assert!(message.contains(&*folder.path().to_string_lossy()), "{message}");
    assert!(message.contains(&process.0.id().to_string()), "{message}");

    let control = address(&ready, "control");
    let mut same_port = command(folder.path());
    same_port.args(["--set", &format!("listen.control={control}")]);
    let (code, message) = run(&mut same_port);
    assert_eq!(code, Some(73), "{message}");
}

#[test]
fn a_limit_of_descriptors_that_is_of_no_use_is_said_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let broker = command(folder.path());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\""]);
    let (code, message) = run(shell.arg(broker.get_program()).args(broker.get_args()));
    assert_eq!(code, Some(64), "{message}");
    assert!(message.contains("the limit of open files is 256"), "{message}");
}

/// Where it listens for a plane.
fn address<'a>(ready: &'a str, plane: &str) -> &'a str {
    let (_, rest) = ready.split_once(&format!("{plane}=")).unwrap();
    rest.split(' ').next().unwrap()
}

/// An HTTP/2 connection that has said so; what one that is refused is told.
fn http2(address: &str) -> Result<TcpStream, Vec<u8>> {
    const ACKNOWLEDGED: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
    let mut stream = TcpStream::connect(address).unwrap();
    // With empty settings. It may have been refused by now.
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let (mut told, mut byte) = (Vec::new(), [0]);
    while !told.ends_with(&ACKNOWLEDGED) {
        match stream.read(&mut byte) {
            Ok(1) => told.extend(byte),
            _ => return Err(told),
        }
    }
    Ok(stream)
}

#[test]
fn connections_too_many_are_told_so_and_counted_and_the_log_names_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path());
    let (process, ready) = Process::spawn(command.args(["--set", "limits.connections_max=1"]));
    let (control, data) = (address(&ready, "control"), address(&ready, "data"));
    let first = http2(control).unwrap();
    let began = Instant::now();
    for _ in 0..5 {
        let told = http2(control).unwrap_err();
        // Behind the settings a GOAWAY of this length, with the code REFUSED_STREAM.
        let [_, _, length, 7, _, _, _, _, _, _, _, _, _, 0, 0, 0, 7, why @ ..] = &told[9..] else {
            panic!("{told:?}");
        };
        assert_eq!(usize::from(*length), 8 + why.len());
        assert_eq!(why, b"too many connections: limits.connections_max");
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let _only = TcpStream::connect(data).unwrap();
    let mut refused = TcpStream::connect(data).unwrap();
    assert!(refused.read_to_end(&mut Vec::new()).unwrap() > 0);

    let mut http = TcpStream::connect(address(&ready, "http")).unwrap();
    http.write_all(b"GET /metrics HTTP/1.1\r\nHost: broker\r\n\r\n").unwrap();
    let mut metrics = String::new();
    http.read_to_string(&mut metrics).unwrap();
    assert!(metrics.contains("longwire_refused_connections_total 6"), "{metrics}");
    drop(first);
    while http2(control).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "its place is never free");
    }
    let log = process.stop();
    for plane in ["control plane", "data plane"] {
        let warning = format!("plane={plane} limit=limits.connections_max connections_max=1");
        assert_eq!(log.iter().filter(|line| line.contains(&warning)).count(), 1, "{log:?}");
    }
}

#[test]
fn mistakes_have_their_exit_statuses_and_messages() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let listen = format!("listen.data={address}");
    for (arguments, code, text) in [
        (vec!["--nonsense"], 64, "--nonsense"),
        (vec!["--set", "storage.segment_bytes=1"], 64, "storage.segment_bytes is 1"),
        (vec!["--set", "no.such=1"], 64, "no.such"),
        (vec!["--set", "log.filter=a=b=c"], 64, "log.filter"),
        (vec!["--set", "log.filter=inf"], 64, "log.filter is \"inf\""),
        (vec!["--config", "/nowhere/at.toml"], 64, "/nowhere/at.toml"),
        (vec!["--set", "transfer.congestion_control=nonsense"], 64, "transfer.congestion_control"),
        (vec!["--set", &listen], 69, "listen.data"),
        (vec!["--set", "data_dir=/proc/longwire"], 74, "/proc/longwire"),
        (vec!["--set", "data_dir=/dev/null"], 74, "/dev/null: it is not a folder"),
        (vec!["--set", "listen.advertised_data=::1:7650"], 64, "in brackets"),
        (vec!["--set", "listen.data=x", "--set", "groups.members_max=0"], 64, "members_max is 0"),
    ] {
        let (status, message) = run(command(folder.path()).args(&arguments));
        assert_eq!(status, Some(code), "{arguments:?}: {message}");
        assert!(message.contains(text), "{arguments:?}: {message}");
    }
}

#[test]
fn a_folder_whose_name_is_not_text_is_served_but_not_printed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join(OsStr::from_bytes(b"a\xFFb"));
    let (status, message) = run(command(&dir).arg("--print-config"));
    assert_eq!(status, Some(64), "{message}");
    assert!(message.contains(r"a\xFFb"), "{message}");
    drop(Process::start(&dir));
    assert!(dir.join("commitlog").is_dir());

    let (status, message) = run(command(folder.path()).env("LONGWIRE_DATA_DIR", &dir));
    assert_eq!(status, Some(64), "{message}");
    assert!(message.contains("LONGWIRE_DATA_DIR"), "{message}");
}

#[test]
fn why_it_ends_is_said_once_whatever_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen.data={}", taken.local_addr().unwrap());
    for filter in ["off", "error", "info", "error,longwire_broker=off"] {
        let mut command = command(folder.path());
        command.args(["--set", &listen, "--set", &format!("log.filter={filter}")]);
        let (status, message) = run(&mut command);
        assert_eq!((status, message.matches("cannot listen").count()), (Some(69), 1), "{message}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_exit_status_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    Store::open(StoreConfig { segment_bytes: 1 << 20, ..StoreConfig::new(&dir) })
        .unwrap()
        .close()
        .unwrap();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for arguments in [&["--print-config"][..], &["verify"], &["verify", "--json"]] {
        let (status, message) = run(command(&dir).args(arguments).stdout(full()));
        assert_eq!(status, Some(74), "{arguments:?}: {message}");
        assert!(message.contains("cannot write the output"), "{arguments:?}: {message}");
        let (_, nobody) = std::io::pipe().unwrap();
        let (status, message) = run(command(&dir).args(arguments).stdout(nobody));
        assert_eq!((status, message.as_str()), (Some(141), ""), "{arguments:?}");
    }
    for (setting, code) in [("no.such=1", 64), ("data_dir=/proc/longwire", 74)] {
        let (status, _) = run(command(&dir).args(["--set", setting]).stderr(full()));
        assert_eq!(status, Some(code), "{setting}");
    }
}

#[test]
fn the_printed_configuration_can_be_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let print = |command: &mut Command| command.arg("--print-config").output().unwrap().stdout;
    let mut first = command(folder.path());
    let printed = print(first.env("LONGWIRE_BROKER_DEFAULT_QUEUES", "3"));
    let text = String::from_utf8(printed.clone()).unwrap();
    assert!(text.contains("default_queues = 3") && text.contains("\"4MiB\""), "{text}");
    let file = folder.path().join("broker.toml");
    std::fs::write(&file, &printed).unwrap();
    let mut second = Command::new(env!("CARGO_BIN_EXE_longwire-broker"));
    assert_eq!(print(second.env_clear().arg("--config").arg(&file)), printed);
    let mut third = Command::new(env!("CARGO_BIN_EXE_longwire-broker"));
    assert_eq!(print(third.env_clear().env("LONGWIRE_CONFIG", &file)), printed);
}

#[test]
fn variables_that_name_no_setting_are_told_beside_the_printed_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path());
    command.arg("--print-config").env("LONGWIRE_CONFIG", "").env("LONGWIRE_STORAGE_NOTHING", "1");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (printed, told) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success() && printed.contains("data_dir"), "{printed}{told}");
    assert!(told.contains("LONGWIRE_STORAGE_NOTHING") && !printed.contains("NOTHING"), "{told}");
}

#[test]
fn help_names_every_exit_status() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, statuses) in [
        (&["--help"][..], &[64, 65, 69, 70, 73, 74, 141][..]),
        (&["verify", "--help"], &[64, 65, 73, 74, 141]),
    ] {
        let output = command(folder.path()).args(arguments).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        for status in statuses {
            assert!(help.contains(&format!("{status} ")), "{status} missing in {help}");
        }
    }
}

#[test]
fn verify_has_exit_statuses_for_scripts_and_salvages_into_a_folder_that_can_be_served() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, copy) = (folder.path().join("store"), folder.path().join("copy"));
    let verify = |arguments: &[&str]| {
        let output = command(&dir).arg("verify").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(verify(&[]).0, Some(74), "there is no store");
    let store = StoreConfig { segment_bytes: 1 << 20, ..StoreConfig::new(&dir) };
    let store = Store::open(store).unwrap();
    store.create_topic(TopicConfig::new("orders", 1)).unwrap();
    assert_eq!(verify(&[]).0, Some(73), "the store is in use");
    store.close().unwrap();
    let (code, text) = verify(&[]);
    assert!(code == Some(0) && text.contains("the log is whole"), "{text}");

    let inside = dir.join("copy");
    assert_eq!(verify(&["--salvage", inside.to_str().unwrap()]).0, Some(64), "it is in the store");

    let segment = dir.join("commitlog/00000000000000000000");
    let (_, text) = verify(&["--json"]);
    assert!(text.contains("\"damage\": []") && text.contains("\"whole\": true"), "{text}");
    std::fs::rename(&segment, dir.join("commitlog/00000000000001048576")).unwrap();
    assert_eq!(verify(&[]).0, Some(65), "no record stands where it says it stands");
    assert_eq!(run(&mut command(&dir)).0, Some(65));
    assert_eq!(verify(&["--salvage", copy.to_str().unwrap()]).0, Some(0));
    drop(Process::start(&copy));
    assert_eq!(verify(&["--salvage", copy.to_str().unwrap()]).0, Some(64), "it is not empty");
}
