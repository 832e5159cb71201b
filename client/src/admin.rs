//! Topics, groups, offsets and the broker itself, over the control plane.

mod broker;
mod groups;
mod offsets;
mod topics;

use longwire_proto::control;

use crate::client::Client;

pub use broker::{BrokerDescription, BrokerStatistics};
pub use groups::{GroupDescription, GroupMember, GroupSummary, QueueLag};
pub use offsets::OffsetPoint;
pub use topics::{NewTopic, QueueRange, Topic, TopicDescription, TopicDurability, TopicUpdate};

/// Manages topics and groups. Made by [`Client::admin`]; cheap to clone.
///
/// Every call fails with [`ErrorKind::Unreachable`](crate::ErrorKind::Unreachable) while the broker
/// is away, and with [`ErrorKind::Refused`](crate::ErrorKind::Refused) and a code where it says no.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Admin {
        Admin { client }
    }
}

fn queue_offsets(offsets: Vec<control::TopicQueueOffset>) -> Vec<crate::QueueOffset> {
    let mut offsets: Vec<_> =
        offsets.into_iter().map(|o| crate::QueueOffset::new(o.topic, o.queue, o.offset)).collect();
    offsets.sort_by(|a, b| (&a.topic, a.queue).cmp(&(&b.topic, b.queue)));
    offsets
}
