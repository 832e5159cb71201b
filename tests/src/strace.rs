//! Which system calls a process makes, as `strace` sees them.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::skip;

/// Every call that moves bytes.
const CALLS: &str = "trace=sendfile,splice,read,readv,pread64,preadv,preadv2,\
                     write,writev,pwrite64,sendto,sendmsg,sendmmsg";

/// A running `strace` of a process and all its threads.
#[derive(Debug)]
pub struct Strace {
    child: Child,
    output: PathBuf,
    // Kept open: strace writes to it again when it detaches.
    _messages: BufReader<ChildStderr>,
}

/// A call that returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its name, such as `pread64`.
    pub name: String,
    /// Its first file: a path, or a socket's description.
    pub file: String,
    /// What it returned; for these calls the bytes it moved.
    pub returned: i64,
}

impl Strace {
    /// Attaches to a process; `None`, with the reason said, where that cannot be done here.
    ///
    /// `output` is where strace writes what it sees.
    pub fn attach(pid: u32, output: PathBuf) -> Option<Strace> {
        Self::start(pid, &["-y", "-e", CALLS], output)
    }

    /// Lets every call of this name that the process makes from now on fail with an error such as
    /// `EIO`, without being made. Else as [`attach`](Self::attach).
    pub fn fail(pid: u32, call: &str, error: &str, output: PathBuf) -> Option<Strace> {
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={error}"));
        Self::start(pid, &["-e", &trace, "-e", &inject], output)
    }

    fn start(pid: u32, what: &[&str], output: PathBuf) -> Option<Strace> {
        let mut command = Command::new("strace");
        command.arg("-f").args(what).args(["-p", &pid.to_string(), "-o"]).arg(&output);
        let started =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                skip(format_args!("what strace would show: it cannot be started: {error}"));
                return None;
            }
        };
        let mut messages = BufReader::new(child.stderr.take()?);
        let mut first = String::new();
        let _ = messages.read_line(&mut first);
        if !first.contains("attached") {
            skip(format_args!("what strace would show: {}", first.trim()));
            let _ = child.wait();
            return None;
        }
        Some(Strace { child, output, _messages: messages })
    }

    /// Detaches; every call that returned meanwhile.
    ///
    /// # Panics
    ///
    /// If what strace wrote cannot be read.
    pub fn detach(mut self) -> Vec<Call> {
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        let _ = self.child.wait();
        let text = fs::read(&self.output).expect("what strace wrote");
        parse(&String::from_utf8_lossy(&text))
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads lines such as `123 sendfile(9<socket:[1]>, 5</a/b>, [0] => [9], 9) = 9`, also where another
/// thread's line came between a call and its return.
fn parse(text: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, (&str, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (name, file) = match rest.strip_prefix("<... ") {
            Some(resumed) if resumed.contains(" resumed>") => match begun.remove(thread) {
                Some(call) => call,
                None => continue,
            },
            _ => match rest.split_once('(') {
                Some((name, arguments)) => (name, first_file(name, arguments)),
                None => continue,
            },
        };
        if rest.ends_with("<unfinished ...>") {
            begun.insert(thread, (name, file));
            continue;
        }
        let returned = rest.rsplit_once(" = ").and_then(|(_, value)| value.split(' ').next());
        if let Some(returned) = returned.and_then(|value| value.parse().ok()) {
            calls.push(Call { name: name.into(), file: file.into(), returned });
        }
    }
    calls
}

/// What stands in the angle brackets behind the descriptor that is read, or else written.
fn first_file<'a>(name: &str, arguments: &'a str) -> &'a str {
    let skipped = usize::from(name == "sendfile");
    let file = arguments.split('<').nth(1 + skipped);
    file.and_then(|file| file.split('>').next()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_whole_and_in_two_parts() {
        let text = "\
            11 sendfile(9<socket:[1]>, 5</s/commitlog/0>, [0] => [9], 9) = 9\n\
            12 pread64(5</s/commitlog/0>,  <unfinished ...>\n\
            11 sendto(9<socket:[1]>, \"a(b<c>\"..., 7, 0, NULL, 0) = -1 EAGAIN (Resource busy)\n\
            12 <... pread64 resumed>\"x\", 1, 0) = 1\n\
            12 +++ exited with 0 +++\n";
        let call = |name: &str, file: &str, returned| Call {
            name: name.into(),
            file: file.into(),
            returned,
        };
        let expected = [
            call("sendfile", "/s/commitlog/0", 9),
            call("sendto", "socket:[1]", -1),
            call("pread64", "/s/commitlog/0", 1),
        ];
        assert_eq!(parse(text), expected);
    }
}
