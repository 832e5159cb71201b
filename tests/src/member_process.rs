//! The `group-member` binary as a child process, and what it says.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::history::MessageId;

/// What a member said, and when that was heard.
#[derive(Debug, Clone)]
pub struct Said {
    /// When it was heard.
    pub at: Instant,
    /// What.
    pub event: MemberEvent,
}

/// A line of `group-member`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberEvent {
    /// It was handed a message.
    Got {
        /// Its queue.
        queue: u32,
        /// Its offset.
        offset: u64,
        /// Which one it is.
        id: MessageId,
    },
    /// The broker has confirmed a commit.
    Committed {
        /// Of this queue.
        queue: u32,
        /// The next offset wanted.
        offset: u64,
    },
    /// The broker has refused a commit, with this code.
    Refused(String),
    /// Anything else: an error, a damaged message.
    Other(String),
}

impl MemberEvent {
    fn parse(line: &str) -> MemberEvent {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        let event = match words[0] {
            "got" => (|| {
                let id = MessageId { producer: number(3)? as u32, number: number(4)? };
                Some(MemberEvent::Got { queue: number(1)? as u32, offset: number(2)?, id })
            })(),
            "committed" => {
                (|| Some(MemberEvent::Committed { queue: number(1)? as u32, offset: number(2)? }))()
            }
            "refused" => words.get(1).map(|code| MemberEvent::Refused((*code).into())),
            _ => None,
        };
        event.unwrap_or_else(|| MemberEvent::Other(line.into()))
    }
}

/// A running member, killed when dropped.
#[derive(Debug)]
pub struct MemberProcess {
    child: Child,
    said: Arc<Mutex<Vec<Said>>>,
    listener: Option<JoinHandle<()>>,
    /// What it calls itself.
    pub client_id: String,
}

impl MemberProcess {
    /// Starts `binary` as a member.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(
        binary: &Path,
        broker: &str,
        group: &str,
        topic: &str,
        client_id: &str,
    ) -> MemberProcess {
        let mut child = Command::new(binary)
            .args([broker, group, topic, client_id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the member's binary can be started");
        let out = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let said: Arc<Mutex<Vec<Said>>> = Arc::default();
        let heard = said.clone();
        let listener = std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let said = Said { at: Instant::now(), event: MemberEvent::parse(&line) };
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(said);
            }
        });
        MemberProcess { child, said, listener: Some(listener), client_id: client_id.into() }
    }

    /// Everything it has said so far, in order.
    pub fn said(&self) -> MutexGuard<'_, Vec<Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many messages it was handed since `since`.
    pub fn got_since(&self, since: Instant) -> usize {
        let said = self.said();
        let later = said.iter().rev().take_while(|said| said.at >= since);
        later.filter(|said| matches!(said.event, MemberEvent::Got { .. })).count()
    }

    /// The newest commit of each queue that the broker has confirmed.
    pub fn committed(&self) -> BTreeMap<u32, u64> {
        let commit = |said: &Said| match said.event {
            MemberEvent::Committed { queue, offset } => Some((queue, offset)),
            _ => None,
        };
        self.said().iter().filter_map(commit).collect()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the member still runs");
    }

    /// Kills it with -9, and returns when everything it had said is heard.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.wait();
    }

    /// Lets it leave the group and end.
    pub fn leave(&mut self) {
        drop(self.child.stdin.take());
        self.wait();
    }

    fn wait(&mut self) {
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Drop for MemberProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
