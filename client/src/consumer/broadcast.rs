//! Reading every queue of the topics subscribed to, without a group.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::builder::StartAt;
use super::start::Created;
use crate::Error;
use crate::message::TopicQueue;

/// How often the broker is asked for added queues.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(10);

impl Shared {
    /// Takes on all queues of the topics.
    pub(super) async fn follow_all(&self, start_at: StartAt) -> Result<(), Error> {
        for topic in self.config.topics() {
            self.follow(topic, true, start_at).await?;
        }
        Ok(())
    }

    /// Takes on the queues of a topic that are not assigned yet.
    async fn follow(
        &self,
        topic: String,
        auto_create: bool,
        start_at: StartAt,
    ) -> Result<(), Error> {
        let description = self.client.control().topic(&topic, auto_create).await?;
        let name: Arc<str> = topic.into();
        let all = description.queues.iter().map(|q| TopicQueue::new(name.clone(), q.queue));
        let new: Vec<TopicQueue> = {
            let queues = self.queues.lock();
            all.filter(|queue| !queues.contains(queue)).collect()
        };
        if !new.is_empty() {
            let position = description.topic.unwrap_or_default().created_position;
            let created = Created::from([(name, position)]);
            self.assign(self.starts(new, &created, start_at).await?);
        }
        Ok(())
    }
}

/// Looks for added queues until the consumer is closed. They are read from their beginning. A topic
/// that has been deleted is not created by that.
pub(super) async fn run(shared: Arc<Shared>) {
    while tokio::time::timeout(FOLLOW_INTERVAL, shared.closing.cancelled()).await.is_err() {
        for topic in shared.config.topics() {
            // A topic that is gone must not hide what was added to the others.
            if let Err(error) = shared.follow(topic, false, StartAt::Earliest).await {
                tracing::debug!(%error, "cannot look for added queues");
            }
        }
    }
}
