//! A broker in memory that does what a test tells it to.

pub mod control;
mod data;

pub use data::encode;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use longwire_client::{Client, ErrorCode};
use longwire_proto::control as wire;
use longwire_proto::data::{FetchRequest, ProduceRequest};
use longwire_proto::record::{Placement, RecordDraft, seal};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::TcpListenerStream;

/// What to do with a request.
#[derive(Debug, Clone)]
pub enum Act {
    Serve,
    /// Refuse every run.
    Refuse(ErrorCode),
    /// Refuse the runs of those queues for which this gives a reason.
    RefuseSome(fn(queue: u32) -> Option<ErrorCode>),
    /// Never answer.
    Hang,
    /// Close the connection without doing anything.
    Drop,
    /// Do it, and close the connection instead of answering.
    ServeAndDrop,
    /// Send these bytes instead of an answer.
    Raw(Bytes),
}

type OnProduce = Box<dyn FnMut(&ProduceRequest) -> Act + Send>;
type OnFetch = Box<dyn FnMut(&FetchRequest) -> Act + Send>;

/// A member's end of its `Join` stream.
#[derive(Debug)]
pub struct JoinedMember {
    pub topics: Vec<String>,
    pub assign: mpsc::Sender<Result<wire::Assignment, tonic::Status>>,
    /// The generations it has said `released` for.
    pub released: mpsc::UnboundedReceiver<u64>,
}

#[derive(Default)]
pub struct State {
    /// Sealed records, by topic and queue.
    pub topics: Mutex<BTreeMap<String, Vec<Vec<Bytes>>>>,
    pub log_end: AtomicU64,
    /// Each time a topic was asked for: whether it was to be created.
    pub topic_asks: Mutex<Vec<bool>>,
    /// The first offset that is still there.
    pub retained_from: Mutex<u64>,
    pub committed: Mutex<HashMap<(String, String, u32), u64>>,
    /// Every commit: member, generation, offset.
    pub commits: Mutex<Vec<wire::CommitOffsetsRequest>>,
    /// How many commits have been asked for, refused ones too.
    pub commit_asks: AtomicUsize,
    /// Why commits are refused.
    pub refuse_commits: Mutex<Option<ErrorCode>>,
    /// Where the control plane says the data plane is.
    pub data_address: Mutex<String>,
    pub on_produce: Mutex<Option<OnProduce>>,
    pub on_fetch: Mutex<Option<OnFetch>>,
    pub connections: Mutex<usize>,
    /// So many of the next data connections end right after their hello.
    pub brief_connections: Mutex<usize>,
    /// What these are sent with their hello.
    pub farewell: Mutex<Bytes>,
    /// Requests are read, and nothing is answered.
    pub silent: AtomicBool,
    members: Mutex<Option<mpsc::UnboundedSender<JoinedMember>>>,
    arrivals: Notify,
}

pub struct Mock {
    pub address: String,
    pub state: Arc<State>,
}

impl Mock {
    /// Starts with these topics and numbers of queues.
    pub async fn start(topics: &[(&str, usize)]) -> Mock {
        let data = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(State::default());
        for (topic, queues) in topics {
            state.topics.lock().insert(topic.to_string(), vec![Vec::new(); *queues]);
        }
        *state.data_address.lock() = format!("0.0.0.0:{}", data.local_addr().unwrap().port());
        let address = control.local_addr().unwrap().to_string();
        let incoming = TcpListenerStream::new(control);
        let services = control::services(state.clone());
        tokio::spawn(async move { services.serve_with_incoming(incoming).await });
        tokio::spawn(data::listen(data, state.clone()));
        Mock { address, state }
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.address).await.unwrap()
    }

    pub fn on_produce(&self, act: impl FnMut(&ProduceRequest) -> Act + Send + 'static) {
        *self.state.on_produce.lock() = Some(Box::new(act));
    }

    pub fn on_fetch(&self, act: impl FnMut(&FetchRequest) -> Act + Send + 'static) {
        *self.state.on_fetch.lock() = Some(Box::new(act));
    }

    /// From here on the test assigns queues. Gives each member that joins.
    pub fn members(&self) -> mpsc::UnboundedReceiver<JoinedMember> {
        let (joined, members) = mpsc::unbounded_channel();
        *self.state.members.lock() = Some(joined);
        members
    }

    /// Deletes a topic.
    pub fn delete(&self, topic: &str) {
        self.state.topics.lock().remove(topic);
        self.state.arrivals.notify_waiters();
    }

    /// Stores messages; gives the sealed records.
    pub fn store(&self, topic: &str, queue: u32, bodies: &[&[u8]]) {
        for body in bodies {
            let mut bytes = Vec::new();
            let draft = RecordDraft { topic, queue, body, ..RecordDraft::default() };
            draft.encode(&mut bytes).unwrap();
            self.state.append(topic, queue, bytes);
        }
    }

    /// The bodies a queue holds.
    pub fn bodies(&self, topic: &str, queue: u32) -> Vec<String> {
        let topics = self.state.topics.lock();
        let records = topics[topic][queue as usize].iter();
        let body = |record: &Bytes| {
            let view = longwire_proto::record::RecordView::parse(record).unwrap();
            view.verify_checksum().unwrap();
            String::from_utf8(view.body().to_vec()).unwrap()
        };
        records.map(body).collect()
    }
}

impl State {
    /// Does not return if the broker is silent.
    async fn speak(&self) {
        if self.silent.load(SeqCst) {
            std::future::pending().await
        }
    }

    /// Whether a new connection is one of the brief ones.
    fn is_brief(&self) -> bool {
        let mut left = self.brief_connections.lock();
        let is_brief = *left > 0;
        *left -= usize::from(is_brief);
        is_brief
    }

    /// Seals and stores a record; gives its offset and position.
    fn append(&self, topic: &str, queue: u32, mut record: Vec<u8>) -> (u64, u64) {
        let mut topics = self.topics.lock();
        let position = self.log_end.fetch_add(record.len() as u64, SeqCst);
        let records = &mut topics.get_mut(topic).unwrap()[queue as usize];
        let offset = records.len() as u64;
        let store_host = "127.0.0.1:7650".parse().unwrap();
        seal(&mut record, &Placement { offset, position, store_timestamp_ms: 1, store_host });
        records.push(record.into());
        drop(topics);
        self.arrivals.notify_waiters();
        (offset, position)
    }
}

/// An assignment of queues of one topic.
pub fn assignment(generation: u64, topic: &str, queues: &[u32]) -> wire::Assignment {
    let queues = queues.to_vec();
    let topics = vec![wire::TopicQueues { topic: topic.into(), queues, created_position: 0 }];
    wire::Assignment { member_id: "me".into(), generation, topics, ..Default::default() }
}
