//! The control plane as the rest of the crate uses it: one lazily reconnecting gRPC channel, and one
//! more for each membership.

use std::time::Duration;

use longwire_proto::control::{
    self, broker_service_client::BrokerServiceClient, group_service_client::GroupServiceClient,
    offset_service_client::OffsetServiceClient, topic_service_client::TopicServiceClient,
};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::admin::OffsetPoint;
use crate::error::innermost;
use crate::{Error, ErrorKind, TopicQueue};

/// Largest answer read from the control plane: a description of 65,536 queues is about 2 MiB.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long a broker that has gone silent holds up a call or a membership.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(crate) struct Control {
    channel: Channel,
    endpoint: Endpoint,
    /// Where the control plane was dialled.
    address: String,
    /// The host the control plane was dialled at, without brackets.
    host: String,
}

impl Control {
    /// Dials `address`, which is `host:port` with or without `http://`.
    pub(crate) async fn connect(address: &str, patience: Duration) -> Result<Control, Error> {
        let bare = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        if let Some((scheme, _)) = bare.split_once("://") {
            let message = format!("address {address:?}: {scheme} is not spoken here, only http");
            return Err(Error::invalid(message));
        }
        let Some((host, port)) = bare.rsplit_once(':') else {
            let message =
                format!("address {address:?} has no port; give host:port, e.g. 127.0.0.1:7651");
            return Err(Error::invalid(message));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(Error::invalid(format!("address {address:?} is not host:port")));
        }
        let endpoint = Endpoint::from_shared(format!("http://{bare}"))
            .map_err(|error| Error::invalid(format!("address {address:?}: {error}")))?
            .connect_timeout(patience)
            .timeout(ANSWER_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        let channel = endpoint.connect().await.map_err(|error| {
            let why = innermost(&error);
            let message = format!(
                "cannot reach the broker's control plane at {bare}: {why}; is longwire-broker running there?"
            );
            Error::new(ErrorKind::Unreachable, message)
        })?;
        Ok(Control { channel, endpoint, address: bare.to_owned(), host })
    }

    pub(crate) fn topics(&self) -> TopicServiceClient<Channel> {
        TopicServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn groups(&self) -> GroupServiceClient<Channel> {
        GroupServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// For one membership, over a connection of its own: its stream stays open, and a broker allows
    /// only so many on a connection.
    pub(crate) fn membership(&self) -> GroupServiceClient<Channel> {
        GroupServiceClient::new(self.endpoint.connect_lazy())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn offsets(&self) -> OffsetServiceClient<Channel> {
        OffsetServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn broker(&self) -> BrokerServiceClient<Channel> {
        BrokerServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn describe_broker(&self) -> Result<control::DescribeBrokerResponse, Error> {
        let answer = self.broker().describe_broker(control::DescribeBrokerRequest {}).await;
        let answer = answer.map_err(|s| Error::from_status("describing the broker", &s))?;
        Ok(answer.into_inner())
    }

    /// Where to dial the data plane. A broker that does not say so within `patience` is not reached.
    pub(crate) async fn data_address(&self, patience: Duration) -> Result<String, Error> {
        let patience = patience.min(ANSWER_TIMEOUT);
        let Ok(described) = timeout(patience, self.describe_broker()).await else {
            let address = &self.address;
            let message =
                format!("no answer from the broker's control plane at {address} in {patience:?}");
            return Err(Error::new(ErrorKind::Unreachable, message));
        };
        let given = described?.data_address;
        resolve_data_address(&given, &self.host).ok_or_else(|| {
            let message = format!("the broker gives {given:?} as its data address, not host:port");
            Error::new(ErrorKind::Protocol, message)
        })
    }

    pub(crate) async fn topic(
        &self,
        name: &str,
        auto_create: bool,
    ) -> Result<control::TopicDescription, Error> {
        let request = control::GetTopicRequest { name: name.to_owned(), auto_create };
        let answer = self.topics().get_topic(request).await;
        let answer = answer.map_err(|s| Error::from_status(&format!("topic {name:?}"), &s))?;
        Ok(answer.into_inner())
    }

    pub(crate) async fn list_offsets(
        &self,
        topic: &str,
        queues: &[u32],
        point: OffsetPoint,
    ) -> Result<Vec<control::TopicQueueOffset>, Error> {
        let request = control::ListOffsetsRequest {
            topic: topic.to_owned(),
            queues: queues.to_vec(),
            point: Some(point.to_wire()),
        };
        let answer = self.offsets().list_offsets(request).await;
        let what = format!("listing offsets of topic {topic:?}");
        Ok(answer.map_err(|s| Error::from_status(&what, &s))?.into_inner().offsets)
    }

    pub(crate) async fn committed(
        &self,
        group: &str,
        topics: &[String],
    ) -> Result<Vec<control::TopicQueueOffset>, Error> {
        let request =
            control::FetchOffsetsRequest { group: group.to_owned(), topics: topics.to_vec() };
        let answer = self.offsets().fetch_offsets(request).await;
        let what = format!("reading committed offsets of group {group:?}");
        Ok(answer.map_err(|s| Error::from_status(&what, &s))?.into_inner().offsets)
    }
}

pub(crate) fn topic_queues(topics: &[control::TopicQueues]) -> Vec<TopicQueue> {
    let mut queues = Vec::new();
    for topic in topics {
        let name: std::sync::Arc<str> = topic.topic.as_str().into();
        queues.extend(topic.queues.iter().map(|&queue| TopicQueue::new(name.clone(), queue)));
    }
    queues
}

/// Puts the control plane's host in the place of an unspecified one.
fn resolve_data_address(given: &str, control_host: &str) -> Option<String> {
    let (host, port) = given.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = match host {
        "" | "0.0.0.0" | "::" => control_host,
        host => host,
    };
    Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_data_host_stands_for_the_control_host() {
        let resolve = |given, host| resolve_data_address(given, host);
        assert_eq!(resolve("0.0.0.0:7650", "10.0.0.1").as_deref(), Some("10.0.0.1:7650"));
        assert_eq!(resolve("[::]:7650", "::1").as_deref(), Some("[::1]:7650"));
        assert_eq!(resolve("[fe80::1]:7650", "x").as_deref(), Some("[fe80::1]:7650"));
        assert_eq!(resolve("broker:7650", "x").as_deref(), Some("broker:7650"));
        assert_eq!(resolve("broker", "x"), None);
        assert_eq!(resolve("broker:port", "x"), None);
    }
}
