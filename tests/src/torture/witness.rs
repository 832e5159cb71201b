//! A consumer that lives through everything, and notes what it is given.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longwire_client::{Client, Error, OffsetPoint, Received, TagFilter};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::PATIENCE;
use super::committer::Offsets;
use crate::history::MessageId;
use crate::wait::try_within;

const COMMIT_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Witness {
    topic: String,
    seen: Arc<Mutex<Seen>>,
    progress: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    next: Offsets,
    ids: HashMap<(u32, u64), MessageId>,
    repeated: u64,
    problems: Vec<String>,
}

/// What it was given in all.
#[derive(Debug)]
pub(super) struct Testimony {
    /// Messages it was given again, because its commit of them had not been confirmed.
    pub(super) repeated: u64,
    pub(super) problems: Vec<String>,
}

impl Witness {
    /// Joins a group of its own.
    pub(super) async fn start(client: &Client, topic: &str) -> Result<Witness, String> {
        let consumer = client
            .consumer()
            .group("witness")
            .subscribe(topic, TagFilter::all())
            .auto_commit(Some(COMMIT_INTERVAL));
        let mut consumer = consumer.build().await.map_err(|error| error.to_string())?;
        let (counter, progress) = watch::channel(0);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noting = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let received = consumer.recv_many(200).await;
                lock(&noting).note(received);
                counter.send_modify(|answers| *answers += 1);
            }
        });
        Ok(Witness { topic: topic.to_owned(), seen, progress, task })
    }

    /// Waits until it has seen everything there is.
    pub(super) async fn finish(mut self, client: &Client) -> Result<Testimony, String> {
        let ends = client.admin().list_offsets(&self.topic, OffsetPoint::Latest).await;
        let mut ends = ends.map_err(|error| error.to_string())?;
        ends.retain(|end| end.offset > 0);
        let done = async {
            loop {
                let next = lock(&self.seen).next.clone();
                if ends.iter().all(|end| next.get(&end.queue).is_some_and(|at| *at >= end.offset))
                    || self.progress.changed().await.is_err()
                {
                    return;
                }
            }
        };
        let done = try_within("everything reaches the witness", PATIENCE, done).await;
        self.task.abort();
        let mut seen = lock(&self.seen);
        let problems = std::mem::take(&mut seen.problems);
        done.map(|()| Testimony { repeated: seen.repeated, problems })
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    fn note(&mut self, received: Result<Vec<Received>, Error>) {
        let Ok(received) = received.inspect_err(|error| self.problems.push(error.to_string()))
        else {
            return;
        };
        for message in received {
            let place = (message.queue(), message.offset());
            let Some(id) = MessageId::of(&message.body()) else {
                self.problems.push(format!("wrong bytes at {place:?}"));
                continue;
            };
            let next = self.next.entry(place.0).or_default();
            if place.1 > *next {
                self.problems.push(format!("{place:?} came where {next} was to come: a gap"));
            }
            *next = (*next).max(place.1 + 1);
            match self.ids.insert(place, id) {
                None => {}
                Some(before) if before == id => self.repeated += 1,
                Some(before) => {
                    self.problems.push(format!("{place:?} was {before}, and is {id}"));
                }
            }
        }
    }
}
