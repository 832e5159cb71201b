//! Being a member of a group.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use longwire_proto::ErrorCode;
use longwire_proto::control::{
    Assignment, JoinRequest, Released, Subscribe, TopicQueues, join_request::Request,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::builder::StartAt;
use super::start::Created;
use super::{Member, Shared};
use crate::backoff::Backoff;
use crate::control::topic_queues;
use crate::message::TopicQueue;
use crate::{Error, ErrorKind};

/// How long the application may work on messages of a queue that goes to another member: less than
/// the broker waits for the release.
const WORK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long leaving waits for the broker.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Joins, and joins again whenever the membership ends, until the consumer is closed.
///
/// `joined` is told about the first attempt. If that fails while somebody waits to hear it, that is all.
pub(super) async fn run(shared: Arc<Shared>, joined: oneshot::Sender<Result<(), Error>>) {
    let mut joined = Some(joined);
    let mut backoff = Backoff::default();
    let mut told = None;
    // Topics can be made anew while there is no membership.
    let mut last = Assignment::default();
    let mut met = None;
    while !shared.closing.is_cancelled() {
        let error = match session(&shared, &mut joined, (&mut last, &mut met), &mut backoff).await {
            Ok(()) => return,
            Err(error) => error,
        };
        let error = match joined.take().map(|joined| joined.send(Err(error.clone()))) {
            Some(Ok(())) => return,
            _ => error,
        };
        lose(&shared);
        let pause = backoff.next();
        tracing::warn!(%error, ?pause, "the group membership has ended; joining again");
        // A refusal that will not pass by itself is for the application to know, once.
        let lasting = error.kind() == ErrorKind::Refused && !error.is_retriable();
        if lasting && told != error.code() {
            told = error.code();
            shared.queues.lock().report(error);
            shared.arrived.notify_one();
        }
        let _ = tokio::time::timeout(pause, shared.closing.cancelled()).await;
    }
}

/// One membership. `Ok` once the consumer is closed.
async fn session(
    shared: &Shared,
    joined: &mut Option<oneshot::Sender<Result<(), Error>>>,
    (last, met): (&mut Assignment, &mut Option<Met>),
    backoff: &mut Backoff,
) -> Result<(), Error> {
    let group = shared.config.group.clone().unwrap_or_default();
    let what = format!("joining group {group:?}");
    let (requests, stream) = mpsc::channel(4);
    let subscribe = Subscribe {
        group,
        topics: shared.config.topics(),
        client_id: shared.client.client_id().to_owned(),
    };
    send(&requests, Request::Subscribe(subscribe)).await?;
    let mut groups = shared.client.control().membership();
    let answer = tokio::select! {
        answer = groups.join(ReceiverStream::new(stream)) => answer,
        () = shared.closing.cancelled() => return Ok(()),
    };
    let mut assignments = answer.map_err(|s| Error::from_status(&what, &s))?.into_inner();
    loop {
        let message = tokio::select! {
            message = assignments.message() => message,
            () = shared.closing.cancelled() => {
                drop(requests);
                leave(assignments).await;
                return Ok(());
            }
        };
        let assignment = message.map_err(|s| Error::from_status(&what, &s))?.ok_or_else(|| {
            Error::new(
                ErrorKind::ConnectionLost,
                format!("{what}: the broker ended the membership"),
            )
        })?;
        let gained = take_on(shared, assignment, last, &requests).await?;
        begin(shared, gained, last, met).await?;
        backoff.reset();
        if let Some(joined) = joined.take() {
            let _ = joined.send(Ok(()));
        }
    }
}

async fn send(requests: &mpsc::Sender<JoinRequest>, request: Request) -> Result<(), Error> {
    let request = JoinRequest { request: Some(request) };
    requests.send(request).await.map_err(|_| {
        Error::new(ErrorKind::ConnectionLost, "the broker no longer listens to this member")
    })
}

/// Waits until the broker has seen that the member leaves: it then ends its side.
async fn leave(mut assignments: Streaming<Assignment>) {
    let ended = async { while let Ok(Some(_)) = assignments.message().await {} };
    let _ = tokio::time::timeout(LEAVE_TIMEOUT, ended).await;
}

/// Gives up what is not in the assignment, and says so. Returns what is new.
async fn take_on(
    shared: &Shared,
    assignment: Assignment,
    last: &mut Assignment,
    requests: &mpsc::Sender<JoinRequest>,
) -> Result<Vec<TopicQueue>, Error> {
    let generation = assignment.generation;
    let assigned: HashSet<TopicQueue> = topic_queues(&assignment.topics).into_iter().collect();
    // Before the new generation is known: with that, what there is to commit for a topic that is gone
    // would be committed for the one that has its name now.
    drop_gone(shared, last, &assignment);
    *shared.member.lock() = Some(Member { id: assignment.member_id.clone(), generation });
    *last = assignment;

    shared.queues.lock().give_up(|queue| assigned.contains(queue));
    // What they held may have kept other queues from being fetched.
    shared.fetch.notify_one();
    work_done(shared).await;
    // A commit that is under way still has the queues, and the next one has not.
    let committing = shared.committing.lock().await;
    let (lost, positions) = shared.queues.lock().forget();
    if shared.config.auto_commit.is_some()
        && !positions.is_empty()
        && let Err(error) = shared.commit_lost(&committing, &positions).await
    {
        tracing::warn!(%error, queues = lost,
            "cannot commit for queues that go to another member; it repeats some messages");
    }
    send(requests, Request::Released(Released { generation })).await?;
    drop(committing);

    let gained: Vec<TopicQueue> = {
        let queues = shared.queues.lock();
        assigned.into_iter().filter(|queue| !queues.contains(queue)).collect()
    };
    tracing::debug!(generation, gained = gained.len(), lost, "assigned");
    Ok(gained)
}

/// Takes on queues that are new in the last assignment.
///
/// All that is stored in a queue that is added later comes after the member has joined, also what is
/// there by now: a member that begins at the latest reads it from its beginning.
async fn begin(
    shared: &Shared,
    gained: Vec<TopicQueue>,
    last: &Assignment,
    met: &mut Option<Met>,
) -> Result<(), Error> {
    let start_at = shared.config.start_at;
    if start_at == StartAt::Latest && met.is_none() {
        *met = Some(Met::now(shared).await?);
    }
    if gained.is_empty() {
        return Ok(());
    }
    let created =
        last.topics.iter().map(|t| (t.topic.as_str().into(), t.created_position)).collect();
    let is_added = |queue: &TopicQueue| met.as_ref().is_some_and(|met| !met.has(queue, &created));
    let (added, others): (Vec<_>, Vec<_>) = gained.into_iter().partition(is_added);
    for (queues, start_at) in [(others, start_at), (added, StartAt::Earliest)] {
        if !queues.is_empty() {
            shared.assign(shared.starts(queues, &created, start_at).await?);
        }
    }
    Ok(())
}

/// The topics as they were when the member had its first assignment: where each was created, and how
/// many queues it had.
struct Met(HashMap<Arc<str>, (u64, u32)>);

impl Met {
    async fn now(shared: &Shared) -> Result<Met, Error> {
        let mut topics = HashMap::new();
        for name in shared.config.topics() {
            match shared.client.control().topic(&name, false).await {
                Err(error) if error.code() == Some(ErrorCode::UnknownTopic) => {}
                described => {
                    let topic = described?.topic.unwrap_or_default();
                    topics.insert(name.into(), (topic.created_position, topic.queues));
                }
            }
        }
        Ok(Met(topics))
    }

    fn has(&self, queue: &TopicQueue, created: &Created) -> bool {
        self.0.get(&queue.topic).is_some_and(|(position, queues)| {
            created.get(&queue.topic) == Some(position) && queue.queue < *queues
        })
    }
}

/// Forgets the queues of topics that have been deleted since the last assignment, also where others
/// have their names now, and tells the application.
fn drop_gone(shared: &Shared, last: &Assignment, now: &Assignment) {
    let unknown = now.unknown_topics.iter().filter(|topic| !last.unknown_topics.contains(topic));
    let created: HashMap<&str, u64> =
        last.topics.iter().map(|t| (&*t.topic, t.created_position)).collect();
    let is_other = |t: &&TopicQueues| {
        created.get(&*t.topic).is_some_and(|position| *position != t.created_position)
    };
    let remade = now.topics.iter().filter(is_other).map(|t| &t.topic);
    let unknown = unknown.map(|topic| (&**topic, "has been deleted"));
    let gone: HashMap<&str, &str> =
        remade.map(|topic| (&**topic, "has been deleted and made anew")).chain(unknown).collect();
    if gone.is_empty() {
        return;
    }
    let mut queues = shared.queues.lock();
    queues.forget_topics(|topic| gone.contains_key(topic));
    for (topic, what) in gone {
        let message = format!("topic {topic:?} {what}");
        queues.report(Error::refused(ErrorCode::UnknownTopic.number(), message));
    }
    drop(queues);
    shared.arrived.notify_one();
}

/// Waits until the application asks for more, and so is done with what it has of lost queues. Then
/// the next member repeats nothing.
async fn work_done(shared: &Shared) {
    let done = async {
        loop {
            let settled = shared.settled.notified();
            if !shared.queues.lock().leaves_work() {
                return;
            }
            settled.await;
        }
    };
    let done = shared.closing.run_until_cancelled(done);
    if tokio::time::timeout(WORK_TIMEOUT, done).await.is_err() {
        tracing::warn!(
            "the application works too long on messages of queues that go to another member; \
             it repeats them"
        );
    }
}

/// The membership has ended: somebody else may read the queues from here on.
fn lose(shared: &Shared) {
    *shared.member.lock() = None;
    let mut queues = shared.queues.lock();
    queues.remember();
    queues.give_up(|_| false);
    queues.forget();
}
