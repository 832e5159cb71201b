//! Topics.

use longwire_proto::control;

use super::Admin;
use crate::Error;

/// When records of a topic are acknowledged and become visible to consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TopicDurability {
    /// In the page cache: fast, and a power cut can take the newest back.
    Write,
    /// Flushed to disk.
    Flush,
}

impl TopicDurability {
    /// The lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            TopicDurability::Write => "write",
            TopicDurability::Flush => "flush",
        }
    }

    fn to_wire(self) -> control::TopicDurability {
        match self {
            TopicDurability::Write => control::TopicDurability::Write,
            TopicDurability::Flush => control::TopicDurability::Flush,
        }
    }
}

/// A topic to be created. What is not set is as the broker is configured.
#[derive(Debug, Clone)]
pub struct NewTopic {
    name: String,
    queues: u32,
    durability: Option<TopicDurability>,
    retention_ms: u64,
    retention_bytes: u64,
}

impl NewTopic {
    /// A topic of this name: 1 to 127 of the characters `A-Z a-z 0-9 _ - % |`.
    pub fn new(name: impl Into<String>) -> NewTopic {
        let name = name.into();
        NewTopic { name, queues: 0, durability: None, retention_ms: 0, retention_bytes: 0 }
    }

    /// How many queues it has.
    pub fn queues(mut self, queues: u32) -> NewTopic {
        self.queues = queues;
        self
    }

    /// When its records are acknowledged and become visible.
    pub fn durability(mut self, durability: TopicDurability) -> NewTopic {
        self.durability = Some(durability);
        self
    }

    /// How long its records are kept, in milliseconds.
    pub fn retention_ms(mut self, retention_ms: u64) -> NewTopic {
        self.retention_ms = retention_ms;
        self
    }

    /// How many bytes of its records are kept.
    pub fn retention_bytes(mut self, retention_bytes: u64) -> NewTopic {
        self.retention_bytes = retention_bytes;
        self
    }
}

/// A change to a topic. What is not set stays as it is.
#[derive(Debug, Clone, Default)]
pub struct TopicUpdate {
    queues: Option<u32>,
    durability: Option<TopicDurability>,
    retention_ms: Option<u64>,
    retention_bytes: Option<u64>,
}

impl TopicUpdate {
    /// Changes nothing yet.
    pub fn new() -> TopicUpdate {
        TopicUpdate::default()
    }

    /// How many queues it has: queues can be added, never taken away. Adding some moves keys.
    pub fn queues(mut self, queues: u32) -> TopicUpdate {
        self.queues = Some(queues);
        self
    }

    /// When its records are acknowledged and become visible.
    pub fn durability(mut self, durability: TopicDurability) -> TopicUpdate {
        self.durability = Some(durability);
        self
    }

    /// How long its records are kept, in milliseconds; 0: as the broker is configured.
    pub fn retention_ms(mut self, retention_ms: u64) -> TopicUpdate {
        self.retention_ms = Some(retention_ms);
        self
    }

    /// How many bytes of its records are kept; 0: as the broker is configured.
    pub fn retention_bytes(mut self, retention_bytes: u64) -> TopicUpdate {
        self.retention_bytes = Some(retention_bytes);
        self
    }
}

/// A topic's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// How many queues it has.
    pub queues: u32,
    /// When its records are acknowledged and become visible.
    pub durability: TopicDurability,
    /// How long its records are kept, in milliseconds; 0: as the broker is configured.
    pub retention_ms: u64,
    /// How many bytes of its records are kept; 0: as the broker is configured.
    pub retention_bytes: u64,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: i64,
}

/// The readable range of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueRange {
    /// The queue.
    pub queue: u32,
    /// The first retained offset.
    pub min_offset: u64,
    /// One past the last visible offset.
    pub max_offset: u64,
}

/// A topic and the readable range of each of its queues.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// Its configuration.
    pub topic: Topic,
    /// Its queues, in order.
    pub queues: Vec<QueueRange>,
}

impl Admin {
    /// Creates a topic. Fails with `TOPIC_EXISTS` if there is one of that name.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<Topic, Error> {
        let what = format!("creating topic {:?}", topic.name);
        let request = control::CreateTopicRequest {
            name: topic.name,
            queues: topic.queues,
            durability: topic.durability.map_or(0, |d| d.to_wire().into()),
            retention_ms: topic.retention_ms,
            retention_bytes: topic.retention_bytes,
        };
        let answer = self.client.control().topics().create_topic(request).await;
        answer.map(|a| read_topic(a.into_inner())).map_err(|s| Error::from_status(&what, &s))
    }

    /// All topics, by name; with those Longwire keeps for itself if `include_system`.
    pub async fn list_topics(&self, include_system: bool) -> Result<Vec<Topic>, Error> {
        let request = control::ListTopicsRequest { include_system };
        let answer = self.client.control().topics().list_topics(request).await;
        let answer = answer.map_err(|s| Error::from_status("listing topics", &s))?;
        let mut topics: Vec<_> = answer.into_inner().topics.into_iter().map(read_topic).collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// A topic's configuration and the range of each queue. Fails with `UNKNOWN_TOPIC`.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, Error> {
        let description = self.client.control().topic(name, false).await?;
        let mut queues: Vec<_> = description
            .queues
            .iter()
            .map(|q| QueueRange {
                queue: q.queue,
                min_offset: q.min_offset,
                max_offset: q.max_offset,
            })
            .collect();
        queues.sort_by_key(|q| q.queue);
        let topic = read_topic(description.topic.unwrap_or_default());
        Ok(TopicDescription { topic, queues })
    }

    /// Changes a topic and returns it as it is now. Fails with `UNKNOWN_TOPIC`, and with
    /// `INVALID_REQUEST` for fewer queues than there are.
    pub async fn update_topic(&self, name: &str, update: TopicUpdate) -> Result<Topic, Error> {
        let request = control::UpdateTopicRequest {
            name: name.to_owned(),
            queues: update.queues,
            durability: update.durability.map(|d| d.to_wire().into()),
            retention_ms: update.retention_ms,
            retention_bytes: update.retention_bytes,
        };
        let answer = self.client.control().topics().update_topic(request).await;
        let what = format!("updating topic {name:?}");
        answer.map(|a| read_topic(a.into_inner())).map_err(|s| Error::from_status(&what, &s))
    }

    /// Deletes a topic with all of its messages. Fails with `UNKNOWN_TOPIC`.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        let request = control::DeleteTopicRequest { name: name.to_owned() };
        let answer = self.client.control().topics().delete_topic(request).await;
        answer.map(|_| ()).map_err(|s| Error::from_status(&format!("deleting topic {name:?}"), &s))
    }
}

fn read_topic(topic: control::Topic) -> Topic {
    Topic {
        durability: match topic.durability() {
            control::TopicDurability::Write => TopicDurability::Write,
            _ => TopicDurability::Flush,
        },
        name: topic.name,
        queues: topic.queues,
        retention_ms: topic.retention_ms,
        retention_bytes: topic.retention_bytes,
        created_ms: topic.created_ms,
    }
}
