//! Where newly assigned queues begin.

use std::collections::HashMap;
use std::sync::Arc;

use longwire_proto::ErrorCode;

use super::Shared;
use super::builder::StartAt;
use super::queues::Start;
use crate::admin::OffsetPoint;
use crate::message::TopicQueue;
use crate::{Error, ErrorKind};

/// Where in the log topics were created: what tells each from others that had its name.
pub(super) type Created = HashMap<Arc<str>, u64>;

impl Shared {
    /// Where the topics of `queues` were created.
    pub(super) async fn created(&self, queues: &[TopicQueue]) -> Result<Created, Error> {
        let mut created = Created::new();
        for TopicQueue { topic, .. } in queues {
            if !created.contains_key(topic) {
                let description = self.client.control().topic(topic, false).await?;
                let position = description.topic.unwrap_or_default().created_position;
                created.insert(topic.clone(), position);
            }
        }
        Ok(created)
    }

    /// Where each of `queues` begins: where the group has committed, else at `start_at`. What is
    /// `created` must have been asked for before: should a topic be made anew in between, these offsets
    /// are not taken for those of the one before.
    pub(super) async fn starts(
        &self,
        queues: Vec<TopicQueue>,
        created: &Created,
        start_at: StartAt,
    ) -> Result<Vec<Start>, Error> {
        let committed = self.committed(&queues).await?;
        let mut starts = Vec::with_capacity(queues.len());
        let start = |queue: TopicQueue, offset, committed| {
            let created_position = created.get(&queue.topic).copied();
            Start::new(queue, created_position, offset, committed)
        };
        let mut open: HashMap<Arc<str>, Vec<u32>> = HashMap::new();
        for queue in queues {
            match committed.get(&queue) {
                Some(&offset) => {
                    starts.push(start(queue, offset, Some(offset)));
                }
                None => open.entry(queue.topic).or_default().push(queue.queue),
            }
        }
        let point = match start_at {
            StartAt::Earliest => OffsetPoint::Earliest,
            StartAt::Latest => OffsetPoint::Latest,
            StartAt::TimeMs(time_ms) => OffsetPoint::TimeMs(time_ms),
        };
        for (topic, queues) in open {
            let offsets = self.client.control().list_offsets(&topic, &queues, point).await?;
            let offsets: HashMap<u32, u64> = offsets.iter().map(|o| (o.queue, o.offset)).collect();
            for queue in queues {
                let queue = TopicQueue::new(topic.clone(), queue);
                let Some(&offset) = offsets.get(&queue.queue) else {
                    let message = format!("the broker lists no offset for queue {queue}");
                    return Err(Error::new(ErrorKind::Protocol, message));
                };
                // A beginning that time would move is committed, so that a restart finds it again.
                let committed = (self.config.start_at == StartAt::Earliest).then_some(offset);
                starts.push(start(queue, offset, committed));
            }
        }
        Ok(starts)
    }

    async fn committed(&self, queues: &[TopicQueue]) -> Result<HashMap<TopicQueue, u64>, Error> {
        let Some(group) = &self.config.group else {
            return Ok(HashMap::new());
        };
        let mut topics: Vec<String> = queues.iter().map(|queue| queue.topic.to_string()).collect();
        topics.sort();
        topics.dedup();
        let offsets = match self.client.control().committed(group, &topics).await {
            Err(error) if error.code() == Some(ErrorCode::UnknownGroup) => Vec::new(),
            offsets => offsets?,
        };
        let offsets = offsets.into_iter();
        Ok(offsets.map(|o| (TopicQueue::new(o.topic, o.queue), o.offset)).collect())
    }

    /// Takes on queues. Neighbours are fetched together: the request names their topic once, and
    /// who produced to one after the other has put their records side by side.
    pub(super) fn assign(&self, mut starts: Vec<Start>) {
        starts.sort_by(|a, b| a.queue.cmp(&b.queue));
        let mut queues = self.queues.lock();
        queues.recall(&mut starts);
        for start in starts {
            let source = self.config.source(&start.queue, start.created_position);
            queues.assign(start, source);
        }
        let dirty = queues.take_dirty();
        drop(queues);
        if dirty {
            self.dirty.notify_one();
        }
        self.fetch.notify_one();
    }
}
