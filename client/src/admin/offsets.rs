//! Offsets of queues, and committed offsets of groups.

use longwire_proto::control;

use super::{Admin, queue_offsets};
use crate::{Error, QueueOffset};

/// A point in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OffsetPoint {
    /// The first retained offset.
    Earliest,
    /// One past the last visible offset.
    Latest,
    /// The first record stored at or after this time, in milliseconds since 1970.
    TimeMs(i64),
    /// This very offset.
    Offset(u64),
}

impl OffsetPoint {
    pub(crate) fn to_wire(self) -> control::OffsetPoint {
        use control::offset_point::Point;
        let point = match self {
            OffsetPoint::Earliest => Point::Earliest(control::Earliest {}),
            OffsetPoint::Latest => Point::Latest(control::Latest {}),
            OffsetPoint::TimeMs(time_ms) => Point::TimeMs(time_ms),
            OffsetPoint::Offset(offset) => Point::Offset(offset),
        };
        control::OffsetPoint { point: Some(point) }
    }
}

impl Admin {
    /// The offset of `point` in every queue of a topic. Fails with `UNKNOWN_TOPIC`.
    pub async fn list_offsets(
        &self,
        topic: &str,
        point: OffsetPoint,
    ) -> Result<Vec<QueueOffset>, Error> {
        self.client.control().list_offsets(topic, &[], point).await.map(queue_offsets)
    }

    /// What a group has committed: for each queue, the next offset wanted.
    pub async fn committed(&self, group: &str) -> Result<Vec<QueueOffset>, Error> {
        self.client.control().committed(group, &[]).await.map(queue_offsets)
    }

    /// Moves a group to `point` in some queues of a topic (none given: all), and returns where each
    /// stands now. With `dry_run` nothing is changed. Fails with `GROUP_NOT_EMPTY` while the group
    /// has members.
    pub async fn reset_offsets(
        &self,
        group: &str,
        topic: &str,
        queues: &[u32],
        point: OffsetPoint,
        dry_run: bool,
    ) -> Result<Vec<QueueOffset>, Error> {
        let request = control::ResetOffsetsRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            queues: queues.to_vec(),
            point: Some(point.to_wire()),
            dry_run,
        };
        let answer = self.client.control().offsets().reset_offsets(request).await;
        let what = format!("resetting group {group:?} in topic {topic:?}");
        let answer = answer.map_err(|s| Error::from_status(&what, &s))?;
        Ok(queue_offsets(answer.into_inner().offsets))
    }
}
