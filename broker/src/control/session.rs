//! One `Join` stream: the life of a member.

use std::collections::BTreeSet;
use std::sync::Arc;

use longwire_proto::control::{
    Assignment, JoinRequest, Released, Subscribe, join_request::Request,
};
use longwire_proto::{ErrorCode, name};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::groups::encode_queues;
use super::{check_group, check_topic, invalid};
use crate::groups::Membership;
use crate::state::{BrokerState, Failure};

/// Longest description of a client that is kept, in characters.
const CLIENT_ID_CHARS_MAX: usize = 128;

type Answer = Result<Assignment, Status>;

/// Begins a membership; the answer is the stream of its assignments.
pub(super) fn start(
    state: Arc<BrokerState>,
    requests: Streaming<JoinRequest>,
) -> ReceiverStream<Answer> {
    let (answers, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let outcome = tokio::select! {
            outcome = run(&state, requests, &answers) => outcome,
            () = answers.closed() => return,
            () = state.shutdown.cancelled() => {
                Err((ErrorCode::ShuttingDown, "the broker is stopping".into()))
            }
        };
        if let Err(failure) = outcome {
            // Fails only if the member is gone.
            let _ = answers.send(Err(state.refuse(failure))).await;
        }
    });
    ReceiverStream::new(stream)
}

/// Ends when the member leaves; dropping it ends the membership too.
async fn run(
    state: &Arc<BrokerState>,
    mut requests: Streaming<JoinRequest>,
    answers: &mpsc::Sender<Answer>,
) -> Result<(), Failure> {
    let first = tokio::time::timeout(state.config.limits.hello_timeout, requests.message()).await;
    let first = first.map_err(|_| {
        (ErrorCode::Timeout, "the stream did not begin with `subscribe` in time".to_owned())
    })?;
    let Ok(Some(JoinRequest { request: Some(Request::Subscribe(subscribe)) })) = first else {
        return Err(invalid("the stream has to begin with `subscribe`"));
    };
    let mut membership = join(state, subscribe).await?;
    let mut untold = true;
    loop {
        tokio::select! {
            permit = answers.reserve(), if untold => {
                let Ok(permit) = permit else { return Ok(()) };
                permit.send(Ok(latest(&mut membership)));
                untold = false;
            }
            changed = membership.assigned.changed(), if !untold => {
                if changed.is_err() {
                    return Err((ErrorCode::UnknownMember, "the membership has ended".into()));
                }
                untold = true;
            }
            request = requests.message() => match request {
                Ok(Some(request)) => handle(state, &membership, request).await?,
                // The member has closed its side, or is gone.
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }
}

fn latest(membership: &mut Membership) -> Assignment {
    let assigned = membership.assigned.borrow_and_update().clone();
    Assignment {
        member_id: membership.id().to_string(),
        generation: assigned.generation,
        topics: encode_queues(&assigned),
        unknown_topics: assigned.unknown_topics.iter().map(|topic| topic.to_string()).collect(),
    }
}

async fn handle(
    state: &Arc<BrokerState>,
    membership: &Membership,
    request: JoinRequest,
) -> Result<(), Failure> {
    match request.request {
        Some(Request::Released(Released { generation })) => membership.released(generation),
        Some(Request::Subscribe(subscribe)) => {
            if *subscribe.group != **membership.group() {
                return Err(invalid("a member cannot change its group"));
            }
            membership.resubscribe(topics(state, subscribe.topics).await?);
        }
        None => return Err(invalid("the request is empty")),
    }
    Ok(())
}

async fn join(state: &Arc<BrokerState>, subscribe: Subscribe) -> Result<Membership, Failure> {
    let Subscribe { group, topics: wanted, client_id } = subscribe;
    check_group(&group)?;
    let topics = topics(state, wanted).await?;
    if !state.store.group_exists(&group) {
        let name = group.clone();
        let created = state.change(move |state| state.store.create_group(&name)).await?;
        created.map_err(|error| (error.code(), error.to_string()))?;
    }
    let client_id = client_id.chars().take(CLIENT_ID_CHARS_MAX).collect();
    state.groups.join(&group, client_id, topics)
}

/// The topics of a subscription, each of which exists from here on.
async fn topics(
    state: &Arc<BrokerState>,
    wanted: Vec<String>,
) -> Result<BTreeSet<Arc<str>>, Failure> {
    let max = state.config.groups.topics_per_member_max;
    if wanted.is_empty() || wanted.len() > max {
        let count = wanted.len();
        return Err(invalid(format!("{count} topics are subscribed to; allowed: 1 to {max}")));
    }
    let mut topics = BTreeSet::new();
    for name in wanted {
        check_topic(&name)?;
        if name::is_system_topic(&name) {
            let message = format!("topic {name:?} is Longwire's own; groups cannot consume it");
            return Err((ErrorCode::SystemTopic, message));
        }
        topics.insert(Arc::from(name));
    }
    for name in &topics {
        state.topic_or_create(name).await?;
    }
    Ok(topics)
}
