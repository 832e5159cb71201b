//! The topic a benchmark works on: the user's, or one of its own.

use std::sync::Arc;

use longwire_client::{
    Client, Durability, Error, NewTopic, QueueRange, Topic, TopicDescription, TopicDurability,
    TopicQueue,
};
use tokio_util::sync::CancellationToken;

use super::TopicArgs;
use crate::Global;
use crate::connection::connect;
use crate::error::Failure;
use crate::topic::DurabilityArg;
use crate::{interrupt, output};

async fn find_or_create(client: &Client, args: &TopicArgs) -> Result<Topic, Failure> {
    let admin = client.admin();
    if let Some(name) = &args.topic {
        return Ok(admin.describe_topic(name).await?.topic);
    }
    let name = format!("bench-{:016x}", fastrand::u64(..));
    let mut new = NewTopic::new(name).queues(args.queues);
    if let Some(durability) = args.durability {
        new = new.durability(durability.to_client());
    }
    Ok(admin.create_topic(new).await?)
}

/// A topic to measure on.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: Arc<str>,
    pub(super) queues: u32,
    /// As the topic is configured.
    pub(super) durability: TopicDurability,
    /// Made for this run.
    pub(super) own: bool,
    requested: Option<DurabilityArg>,
    keep: bool,
    pub(super) client: Client,
}

impl Target {
    /// Connects, and finds the topic or makes one.
    pub(super) async fn open(
        global: &Global,
        args: &TopicArgs,
        interrupted: &CancellationToken,
    ) -> Result<Target, Failure> {
        let client = interrupt::race(interrupted, connect(global)).await?;
        // Once it is being made, it is waited for: else nobody would delete it.
        let topic = tokio::select! {
            topic = find_or_create(&client, args) => topic?,
            () = interrupt::given_up(interrupted) => return Err(Failure::interrupted()),
        };
        Ok(Target {
            name: topic.name.into(),
            queues: topic.queues,
            durability: topic.durability,
            own: args.topic.is_none(),
            requested: args.durability,
            keep: args.keep_topic,
            client,
        })
    }

    /// What producers ask for: what was asked for, unless the topic has been made that way.
    pub(super) fn producer_durability(&self) -> Durability {
        match self.requested {
            Some(DurabilityArg::Flush) if !self.own => Durability::Flush,
            Some(DurabilityArg::Write) if !self.own => Durability::Write,
            _ => Durability::Topic,
        }
    }

    /// When messages are acknowledged.
    pub(super) fn acknowledged_at(&self) -> &'static str {
        self.requested.map_or(self.durability, DurabilityArg::to_client).name()
    }

    pub(super) async fn describe(&self) -> Result<TopicDescription, Failure> {
        Ok(self.client.admin().describe_topic(&self.name).await?)
    }

    /// The end of each queue as it is now.
    pub(super) async fn ends(&self) -> Result<Vec<(TopicQueue, u64)>, Error> {
        let described = self.client.admin().describe_topic(&self.name).await?;
        let end = |q: &QueueRange| (TopicQueue::new(Arc::clone(&self.name), q.queue), q.max_offset);
        Ok(described.queues.iter().map(end).collect())
    }

    /// Deletes a topic that was made for this run, unless it is to be kept.
    pub(super) async fn close(&self, global: &Global, interrupted: &CancellationToken) {
        if !self.own {
            return;
        }
        if self.keep {
            if !global.quiet {
                output::note(&format!("topic {} was kept", self.name));
            }
            return;
        }
        // The run's own outcome is what matters; this is told beside it.
        let admin = self.client.admin();
        let deleted = tokio::select! {
            deleted = admin.delete_topic(&self.name) => deleted.map_err(|error| error.to_string()),
            () = interrupt::given_up(interrupted) => Err("the broker did not answer".to_owned()),
        };
        if let Err(why) = deleted {
            output::note(&format!("topic {} could not be deleted: {why}", self.name));
        }
    }
}
