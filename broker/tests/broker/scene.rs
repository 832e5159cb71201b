//! A broker in a temporary folder, and a client's view of it.

use std::fmt::Debug;

use longwire_broker::{Broker, Config};
use longwire_proto::control::broker_service_client::BrokerServiceClient;
use longwire_proto::control::group_service_client::GroupServiceClient;
use longwire_proto::control::offset_service_client::OffsetServiceClient;
use longwire_proto::control::topic_service_client::TopicServiceClient;
use longwire_proto::control::{CreateTopicRequest, Topic, TopicQueueOffset};
use longwire_proto::record::RecordDraft;
use longwire_proto::{ErrorCode, error_code_of};
use longwire_storage::RecordRun;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

pub(crate) struct Scene {
    pub(crate) broker: Broker,
    pub(crate) topics: TopicServiceClient<Channel>,
    pub(crate) groups: GroupServiceClient<Channel>,
    pub(crate) offsets: OffsetServiceClient<Channel>,
    pub(crate) about: BrokerServiceClient<Channel>,
    pub(crate) folder: TempDir,
}

impl Scene {
    pub(crate) async fn start() -> Scene {
        Scene::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let mut config = small(folder.path());
        change(&mut config);
        let broker = Broker::start(config).await.unwrap();
        Scene::at(broker, folder).await
    }

    pub(crate) async fn at(broker: Broker, folder: TempDir) -> Scene {
        let channel = connect(&broker).await;
        Scene {
            topics: TopicServiceClient::new(channel.clone()),
            groups: GroupServiceClient::new(channel.clone()),
            offsets: OffsetServiceClient::new(channel.clone()),
            about: BrokerServiceClient::new(channel),
            broker,
            folder,
        }
    }

    /// Stops the broker and starts another on the same folder.
    pub(crate) async fn restart(self) -> Scene {
        self.broker.shutdown().await.unwrap();
        let broker = Broker::start(small(self.folder.path())).await.unwrap();
        Scene::at(broker, self.folder).await
    }

    pub(crate) async fn create(&mut self, name: &str, queues: u32) -> Topic {
        let request = CreateTopicRequest { name: name.into(), queues, ..Default::default() };
        self.topics.create_topic(request).await.unwrap().into_inner()
    }

    /// Appends records to a queue and waits until they are visible.
    pub(crate) async fn append(&self, topic: &str, queue: u32, records: usize) {
        let store = self.broker.store();
        let target = store.topic(topic).unwrap().queue(queue).unwrap();
        for _ in 0..records {
            let mut bytes = Vec::new();
            let draft = RecordDraft { topic, queue, body: b"body", ..RecordDraft::default() };
            draft.encode(&mut bytes).unwrap();
            let mut run = RecordRun::check(topic, queue, &mut bytes).unwrap();
            let end = store.append(&target, &mut run).unwrap().last().unwrap().end;
            store.flushed(end).await.unwrap();
            store.dispatched().reached(end).await.unwrap();
        }
    }
}

/// Settings with small segments, so that many tests fit side by side.
pub(crate) fn small(folder: &std::path::Path) -> Config {
    let mut config = Config::ephemeral(folder);
    config.storage.segment_bytes = 4 << 20;
    config
}

pub(crate) async fn connect(broker: &Broker) -> Channel {
    let address = format!("http://{}", broker.control_addr());
    Endpoint::from_shared(address).unwrap().connect().await.unwrap()
}

/// The error code of a refused call.
#[track_caller]
pub(crate) fn refused<T: Debug>(outcome: Result<Response<T>, Status>) -> ErrorCode {
    error_code_of(&outcome.unwrap_err()).expect("one of Longwire's codes")
}

pub(crate) fn at(topic: &str, queue: u32, offset: u64) -> TopicQueueOffset {
    TopicQueueOffset { topic: topic.into(), queue, offset }
}
