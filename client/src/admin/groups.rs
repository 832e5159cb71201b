//! Groups.

use longwire_proto::control;

use super::Admin;
use crate::{Error, TopicQueue};

/// A group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupSummary {
    /// Its name.
    pub name: String,
    /// How many members it has now.
    pub members: u32,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMember {
    /// Given by the broker.
    pub member_id: String,
    /// What the client calls itself.
    pub client_id: String,
    /// The queues it owns.
    pub assigned: Vec<TopicQueue>,
}

/// How far a group is with a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueLag {
    /// The topic.
    pub topic: String,
    /// The queue.
    pub queue: u32,
    /// The next offset wanted; `None` where the group has never committed for the queue.
    pub committed: Option<u64>,
    /// The first retained offset.
    pub min_offset: u64,
    /// One past the last visible offset.
    pub max_offset: u64,
    /// Visible messages not yet committed.
    pub lag: u64,
    /// The member that owns the queue, if one does.
    pub member_id: Option<String>,
}

/// A group with its members and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupDescription {
    /// Its name.
    pub name: String,
    /// Counts the assignments it has had.
    pub generation: u64,
    /// Its members now.
    pub members: Vec<GroupMember>,
    /// Its queues, by topic and number.
    pub queues: Vec<QueueLag>,
}

impl Admin {
    /// All groups, by name.
    pub async fn list_groups(&self) -> Result<Vec<GroupSummary>, Error> {
        let request = control::ListGroupsRequest {};
        let answer = self.client.control().groups().list_groups(request).await;
        let answer = answer.map_err(|s| Error::from_status("listing groups", &s))?;
        let groups = answer.into_inner().groups.into_iter();
        let mut groups: Vec<_> =
            groups.map(|g| GroupSummary { name: g.name, members: g.members }).collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(groups)
    }

    /// A group's members and lag. Fails with `UNKNOWN_GROUP`.
    pub async fn describe_group(&self, name: &str) -> Result<GroupDescription, Error> {
        let request = control::DescribeGroupRequest { name: name.to_owned() };
        let answer = self.client.control().groups().describe_group(request).await;
        let group = answer
            .map_err(|s| Error::from_status(&format!("describing group {name:?}"), &s))?
            .into_inner();
        let mut queues: Vec<_> = group.queues.into_iter().map(read_lag).collect();
        queues.sort_by(|a, b| (&a.topic, a.queue).cmp(&(&b.topic, b.queue)));
        Ok(GroupDescription {
            name: group.name,
            generation: group.generation,
            members: group.members.into_iter().map(read_member).collect(),
            queues,
        })
    }

    /// Deletes a group with its committed offsets. Fails with `UNKNOWN_GROUP`, and with
    /// `GROUP_NOT_EMPTY` while it has members.
    pub async fn delete_group(&self, name: &str) -> Result<(), Error> {
        let request = control::DeleteGroupRequest { name: name.to_owned() };
        let answer = self.client.control().groups().delete_group(request).await;
        answer.map(|_| ()).map_err(|s| Error::from_status(&format!("deleting group {name:?}"), &s))
    }
}

fn read_member(member: control::Member) -> GroupMember {
    GroupMember {
        member_id: member.member_id,
        client_id: member.client_id,
        assigned: crate::control::topic_queues(&member.assigned),
    }
}

fn read_lag(lag: control::QueueLag) -> QueueLag {
    QueueLag {
        topic: lag.topic,
        queue: lag.queue,
        committed: lag.committed,
        min_offset: lag.min_offset,
        max_offset: lag.max_offset,
        lag: lag.lag,
        member_id: (!lag.member_id.is_empty()).then_some(lag.member_id),
    }
}
