//! Settings of a consumer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use longwire_proto::name::{check_group, check_topic};

use super::Consumer;
use super::chunk::{CreatedPosition, Source};
use super::filter::TagFilter;
use super::prefetch::Reset;
use crate::Error;
use crate::client::Client;
use crate::message::TopicQueue;

/// Where a consumer begins in a queue its group has not committed for, and where it goes on if the
/// messages it wants are no longer there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StartAt {
    /// The first retained message.
    #[default]
    Earliest,
    /// Messages stored from now on: all of those in queues that are added later.
    Latest,
    /// The first message stored at or after this time, in milliseconds since 1970.
    TimeMs(i64),
}

/// Settings of a [`Consumer`]. Made by [`Client::consumer`].
///
/// There are three ways to consume:
///
/// - As a member of a [`group`](ConsumerBuilder::group) with
///   [`subscribe`](ConsumerBuilder::subscribe): the members share the queues of their topics.
/// - [`broadcast`](ConsumerBuilder::broadcast) with `subscribe`: every queue, and nothing is
///   committed.
/// - [`assign`](ConsumerBuilder::assign): these very queues; with a `group`, its committed offsets
///   are used, which works only while the group has no members.
#[derive(Debug, Clone)]
pub struct ConsumerBuilder {
    client: Client,
    config: Config,
    broadcast: bool,
    assigned: Vec<TopicQueue>,
    commit_interval: Option<Duration>,
}

/// What a running consumer is set to.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) group: Option<String>,
    pub(super) mode: Mode,
    pub(super) subscriptions: BTreeMap<Arc<str>, Arc<TagFilter>>,
    pub(super) start_at: StartAt,
    pub(super) auto_commit: Option<Duration>,
    pub(super) prefetch_bytes_max: usize,
}

/// Where a consumer's queues come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    Member,
    Broadcast,
    #[default]
    Assigned,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client) -> ConsumerBuilder {
        let config = Config {
            group: None,
            mode: Mode::Member,
            subscriptions: BTreeMap::new(),
            start_at: StartAt::Earliest,
            auto_commit: None,
            prefetch_bytes_max: 32 * 1024 * 1024,
        };
        let commit_interval = Some(Duration::from_secs(5));
        ConsumerBuilder { client, config, broadcast: false, assigned: Vec::new(), commit_interval }
    }

    /// The group whose committed offsets are used, and which is joined if topics are subscribed to.
    pub fn group(mut self, group: impl Into<String>) -> ConsumerBuilder {
        self.config.group = Some(group.into());
        self
    }

    /// Adds a topic, or changes its filter. It is created if the broker does that.
    ///
    /// All members of a group should use the same filter for a topic. With
    /// [`assign`](ConsumerBuilder::assign) it only sets the filter.
    pub fn subscribe(mut self, topic: impl Into<Arc<str>>, filter: TagFilter) -> ConsumerBuilder {
        self.config.subscriptions.insert(topic.into(), Arc::new(filter));
        self
    }

    /// Reads every queue of the topics, also queues added later, without a group.
    ///
    /// A topic that is deleted gives an error for each queue, once. If it is created anew, it is read
    /// from its beginning.
    pub fn broadcast(mut self) -> ConsumerBuilder {
        self.broadcast = true;
        self
    }

    /// Reads these queues.
    pub fn assign(mut self, queues: impl IntoIterator<Item = TopicQueue>) -> ConsumerBuilder {
        self.assigned.extend(queues);
        self
    }

    /// Where to begin in a queue without a committed offset. Default: [`StartAt::Earliest`].
    pub fn start_at(mut self, start_at: StartAt) -> ConsumerBuilder {
        self.config.start_at = start_at;
        self
    }

    /// How often to commit what the application is done with, or `None` for never. Default: 5 s.
    ///
    /// A message counts as done with when the application asks for the next one. So what is received
    /// again after a crash are the messages it was working on, and those since the last commit.
    pub fn auto_commit(mut self, interval: Option<Duration>) -> ConsumerBuilder {
        self.commit_interval = interval;
        self
    }

    /// How many bytes of records are held that have not been handed out, and about how many bytes of
    /// bodies that were compressed are handed out at a time. Default: 32 MiB.
    ///
    /// A record larger than a fetch asks for comes in one piece all the same, so up to one record per
    /// 128 queues can come on top.
    pub fn prefetch_bytes_max(mut self, prefetch_bytes_max: usize) -> ConsumerBuilder {
        self.config.prefetch_bytes_max = prefetch_bytes_max;
        self
    }

    /// Connects to the broker's data plane, and joins the group if there is one to join.
    ///
    /// Returns with the first assignment, or after 10 s without one, which then comes later. Fails
    /// with [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for settings that
    /// contradict each other, and with what the broker says to the topics and the group.
    pub async fn build(self) -> Result<Consumer, Error> {
        let ConsumerBuilder { client, mut config, broadcast, assigned, commit_interval } = self;
        config.mode = mode(&config, broadcast, &assigned)?;
        for (topic, filter) in &config.subscriptions {
            check_topic(topic).map_err(|error| Error::invalid(error.to_string()))?;
            filter.check()?;
        }
        if let Some(group) = &config.group {
            check_group(group).map_err(|error| Error::invalid(error.to_string()))?;
            config.auto_commit = commit_interval;
        }
        Consumer::start(client, config, assigned).await
    }
}

fn mode(config: &Config, broadcast: bool, assigned: &[TopicQueue]) -> Result<Mode, Error> {
    let grouped = config.group.is_some();
    let subscribed = !config.subscriptions.is_empty();
    let why = match (assigned.is_empty(), broadcast) {
        (false, true) => "broadcast reads all queues; leave out `assign`",
        (false, false) => return Ok(Mode::Assigned),
        (true, _) if !subscribed => "nothing to consume; `subscribe` to a topic or `assign` queues",
        (true, true) if grouped => "broadcast works without a group; leave out `group`",
        (true, true) => return Ok(Mode::Broadcast),
        (true, false) if grouped => return Ok(Mode::Member),
        (true, false) => "a subscription needs a `group` to share it with, or `broadcast`",
    };
    Err(Error::invalid(format!("this consumer cannot be built: {why}")))
}

impl Config {
    pub(super) fn is_member(&self) -> bool {
        self.mode == Mode::Member
    }

    pub(super) fn topics(&self) -> Vec<String> {
        self.subscriptions.keys().map(|topic| topic.to_string()).collect()
    }

    /// What records of a queue have to look like.
    pub(super) fn source(&self, queue: &TopicQueue, created_position: Option<u64>) -> Arc<Source> {
        let filter = self.subscriptions.get(&queue.topic).cloned().unwrap_or_default();
        let created_position = created_position.and_then(CreatedPosition::new);
        Arc::new(Source { name: queue.clone(), filter, created_position })
    }

    pub(super) fn reset(&self) -> Reset {
        match self.start_at {
            StartAt::Latest => Reset::Latest,
            StartAt::Earliest | StartAt::TimeMs(_) => Reset::Earliest,
        }
    }
}
