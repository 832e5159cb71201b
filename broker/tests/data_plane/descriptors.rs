//! File descriptors: those that connections take must not be the store's.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use longwire_proto::ErrorCode;

use crate::client::Client;

/// A broker process that may open so many files; killed when dropped.
struct Process {
    child: Child,
    /// What it says until it is ready.
    said: String,
}

impl Process {
    fn start(folder: &std::path::Path, limit: u32) -> Process {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("ulimit -n {limit} && exec \"$0\" \"$@\""));
        shell.arg(env!("CARGO_BIN_EXE_longwire-broker")).arg("--data-dir").arg(folder);
        for plane in ["data", "control", "http"] {
            shell.arg(format!("--{plane}-listen")).arg("127.0.0.1:0");
        }
        shell.args(["--set", "storage.segment_bytes=64KiB"]).stderr(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        while !said.contains("control=") {
            said += &lines.next().unwrap().unwrap();
        }
        // What follows is read to the end, so that the process never waits for us.
        std::thread::spawn(move || lines.for_each(drop));
        Process { child, said }
    }

    fn address(&self, plane: &str) -> SocketAddr {
        let after = self.said.split(&format!("{plane}=")).nth(1).unwrap();
        after.split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn idle_connections_leave_the_store_the_descriptors_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(folder.path(), 720);
    assert!(process.said.contains("limit of open files is too low"), "{}", process.said);
    let mut client = Client::connect(process.address("data"));
    let idle = |plane, count| {
        let address = process.address(plane);
        (0..count).map(move |_| TcpStream::connect(address).unwrap())
    };
    // No more than the system's backlog of the control plane holds.
    let _idle: Vec<_> = idle("control", 150).chain(idle("data", 600)).collect();
    // Those before it have been accepted.
    let mut surplus = Client::connect_silently(process.address("data"));
    assert_eq!(surplus.error_and_close(), ErrorCode::Overloaded);

    for topic in ["a", "b", "c"] {
        // Each in a segment of its own.
        let bodies = vec![[7; 50_000]; 4];
        client.produce_bodies(topic, 0, &bodies[..1]);
        bodies[1..].iter().for_each(|body| _ = client.produce_bodies(topic, 0, &[body]));
        client.assert_queue_holds(topic, 0, 1 << 20, &bodies);
    }
    assert_eq!(process.child.try_wait().unwrap(), None, "it still runs");
}
