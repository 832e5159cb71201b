//! The one member of a group, which commits what it has received until its broker is broken.

use std::collections::{BTreeMap, HashMap};

use longwire_client::{Client, Consumer, TagFilter};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::PATIENCE;
use crate::history::{MessageId, TopicLog};
use crate::wait::try_within;

/// Messages received at a time, and so between two commits.
const BATCH: usize = 50;

/// Offsets by queue.
pub(super) type Offsets = BTreeMap<u32, u64>;

/// What a group has committed, as a client is told.
pub(super) async fn committed_offsets(client: &Client, group: &str) -> Result<Offsets, String> {
    let committed = client.admin().committed(group).await;
    let committed = committed.map_err(|error| format!("what {group} has committed: {error}"))?;
    Ok(committed.into_iter().map(|at| (at.queue, at.offset)).collect())
}

#[derive(Debug)]
pub(super) struct Committer {
    stop: CancellationToken,
    commits: watch::Receiver<usize>,
    task: JoinHandle<Commits>,
}

/// Where a group's commits stood when the broker was broken.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// What the broker has confirmed.
    confirmed: Offsets,
    /// What has been sent to it, confirmed or not.
    sent: Offsets,
    /// What was received, by queue and offset.
    seen: HashMap<(u32, u64), MessageId>,
    problems: Vec<String>,
}

impl Commits {
    /// What is wrong, given what the broker says that it has.
    pub(super) fn problems(mut self, committed: &Offsets) -> Vec<String> {
        let problems = &mut self.problems;
        for (queue, offset) in committed {
            let at_least = self.confirmed.get(queue).copied().unwrap_or(0);
            let at_most = self.sent.get(queue).copied().unwrap_or(0);
            if !(at_least..=at_most).contains(offset) {
                problems.push(format!(
                    "{at_least} was committed for queue {queue}, and {at_most} tried; now it is {offset}"
                ));
            }
        }
        let gone = self.confirmed.keys().filter(|queue| !committed.contains_key(queue));
        problems
            .extend(gone.map(|queue| format!("queue {queue} has no committed offset any more")));
        self.problems
    }

    /// What was shown to the group and is not in the log any more.
    pub(super) fn taken_back(&self, log: &TopicLog) -> Vec<String> {
        let kept = |(queue, offset): &(u32, u64), id: &MessageId| {
            log.get(queue).and_then(|messages| messages.get(*offset as usize)) == Some(id)
        };
        let gone = self.seen.iter().filter(|(place, id)| !kept(place, id));
        gone.map(|(place, id)| format!("{id}, consumed at {place:?}, is gone")).collect()
    }
}

impl Committer {
    /// Joins; what comes first of each queue has to be what was committed.
    pub(super) async fn start(
        client: &Client,
        (group, topic): (&str, &str),
        resume_at: Offsets,
    ) -> Result<Committer, String> {
        let consumer = client.consumer().group(group).subscribe(topic, TagFilter::all());
        let consumer = try_within("joining", PATIENCE, consumer.auto_commit(None).build()).await?;
        let consumer = consumer.map_err(|error| format!("joining {group}: {error}"))?;
        let (counter, commits) = watch::channel(0);
        let stop = CancellationToken::new();
        let task = tokio::spawn(commit(consumer, resume_at, counter, stop.clone()));
        Ok(Committer { stop, commits, task })
    }

    /// Waits until `count` more commits are confirmed than before.
    pub(super) async fn commits(&self, count: usize) -> Result<(), String> {
        let mut commits = self.commits.clone();
        let target = *commits.borrow() + count;
        let commits = commits.wait_for(|commits| *commits >= target);
        let waited = try_within("commits of the group", PATIENCE, commits).await?;
        waited.map(drop).map_err(|_| "the group's member has ended".to_owned())
    }

    pub(super) async fn stop(self) -> Result<Commits, String> {
        self.stop.cancel();
        self.task.await.map_err(|error| error.to_string())
    }
}

async fn commit(
    mut consumer: Consumer,
    resume_at: Offsets,
    counter: watch::Sender<usize>,
    stop: CancellationToken,
) -> Commits {
    let mut next = resume_at.clone();
    let mut commits =
        Commits { confirmed: resume_at.clone(), sent: resume_at, ..Commits::default() };
    let mut stopped = std::pin::pin!(stop.cancelled());
    loop {
        let received = tokio::select! {
            received = consumer.recv_many(BATCH) => received,
            () = &mut stopped => return commits,
        };
        let Ok(received) = received.inspect_err(|error| commits.problems.push(error.to_string()))
        else {
            return commits;
        };
        for message in received {
            let (queue, offset) = (message.queue(), message.offset());
            let expected = next.entry(queue).or_default();
            if offset != *expected {
                commits.problems.push(format!("{offset} came for {expected} in queue {queue}"));
            }
            *expected = offset + 1;
            match MessageId::of(&message.body()) {
                Some(id) => drop(commits.seen.insert((queue, offset), id)),
                None => commits.problems.push(format!("wrong bytes at {queue}/{offset}")),
            }
        }
        commits.sent.clone_from(&next);
        let confirmed = tokio::select! {
            confirmed = consumer.commit() => confirmed.is_ok(),
            () = &mut stopped => return commits,
        };
        if confirmed {
            commits.confirmed.clone_from(&next);
            counter.send_modify(|commits| *commits += 1);
        }
    }
}
