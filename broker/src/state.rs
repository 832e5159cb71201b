//! What the parts of a running broker share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use longwire_proto::{ErrorCode, name};
use longwire_storage::{Durability, Store, Topic, TopicConfig, TopicError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, DefaultDurability};
use crate::groups::Coordinator;
use crate::metrics::Metrics;

/// How many control requests may wait for the disk at a time; the others queue behind them.
const BLOCKING_CALLS_MAX: usize = 16;

/// An error as both planes report it: what kind, and what happened on what.
pub(crate) type Failure = (ErrorCode, String);

/// One running broker. Shared as `Arc` by the data plane, the control plane and HTTP.
///
/// The data plane is two functions: `crate::data::bind(&Config)` makes its listener, and
/// `crate::data::serve(listener, state)`, run inside the data runtime, completes once `shutdown`
/// is cancelled and connections are closed, with parked fetches left unanswered.
#[derive(Debug)]
pub(crate) struct BrokerState {
    pub(crate) config: Config,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Metrics,
    pub(crate) groups: Coordinator,
    /// Cancelled when the broker stops: accept nothing, end what waits.
    pub(crate) shutdown: CancellationToken,
    /// What records carry as their store host.
    pub(crate) store_host: SocketAddr,
    /// `host:port` clients are told for the data plane.
    pub(crate) advertised_data: String,
    pub(crate) started_ms: i64,
    blocking: Arc<Semaphore>,
    /// Held by the one change of topics or groups that is being made: the store makes them one after
    /// another, and those that queue must not hold places of [`blocking`](Self::blocking).
    changing: Arc<Semaphore>,
}

impl BrokerState {
    pub(crate) fn new(
        config: Config,
        store: Arc<Store>,
        metrics: Metrics,
        groups: Coordinator,
        store_host: SocketAddr,
        advertised_data: String,
    ) -> BrokerState {
        BrokerState {
            config,
            store,
            metrics,
            groups,
            shutdown: CancellationToken::new(),
            store_host,
            advertised_data,
            started_ms: now_ms(),
            blocking: Arc::new(Semaphore::new(BLOCKING_CALLS_MAX)),
            changing: Arc::new(Semaphore::new(1)),
        }
    }

    /// Why requests are not served, if they are not.
    pub(crate) fn unready(&self) -> Option<&'static str> {
        if self.store.failure().is_some() {
            Some("the store has failed")
        } else if self.shutdown.is_cancelled() {
            Some("stopping")
        } else {
            None
        }
    }

    /// Runs a call that can wait for the disk where no runtime thread is held up by it. Once begun it comes
    /// to its end, even if nobody waits for it any more: whoever asked may have gone.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        call: impl FnOnce(&BrokerState) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let permit = Arc::clone(&self.blocking).acquire_owned().await.map_err(|_| stopping())?;
        let state = Arc::clone(self);
        let call = move || {
            let _permit = permit;
            call(&state)
        };
        match tokio::task::spawn_blocking(call).await {
            Ok(value) => Ok(value),
            Err(error) if error.is_cancelled() => Err(stopping()),
            Err(error) => Err((ErrorCode::Internal, format!("a fault in the broker: {error}"))),
        }
    }

    /// As [`blocking`](Self::blocking), for a change of the topics or groups there are.
    pub(crate) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&BrokerState) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let turn = Arc::clone(&self.changing).acquire_owned().await.map_err(|_| stopping())?;
        let change = move |state: &BrokerState| {
            let _turn = turn;
            change(state)
        };
        self.blocking(change).await
    }

    /// Creates, changes or deletes a topic, and tells the groups.
    pub(crate) async fn change_topic<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        change: impl FnOnce(&Store, &str) -> Result<T, TopicError> + Send + 'static,
    ) -> Result<Result<T, TopicError>, Failure> {
        let name = name.to_owned();
        let change = move |state: &BrokerState| {
            let changed = change(&state.store, &name)?;
            state.groups.topic_changed(&name);
            Ok(changed)
        };
        self.change(change).await
    }

    /// The topic; created with default settings where it is unknown and that is allowed.
    ///
    /// Fails with `UNKNOWN_TOPIC`, `INVALID_NAME`, `SYSTEM_TOPIC`, or as the store does.
    pub(crate) async fn topic_or_create(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<Arc<Topic>, Failure> {
        if let Some(topic) = self.store.topic(name) {
            return Ok(topic);
        }
        name::check_topic(name).map_err(|error| (ErrorCode::InvalidName, error.to_string()))?;
        let unknown = || (ErrorCode::UnknownTopic, format!("there is no topic {name:?}"));
        if name::is_system_topic(name) || !self.config.broker.auto_create_topics {
            return Err(unknown());
        }
        let config = self.default_topic(name);
        let created = self.change_topic(name, move |store, _| store.create_topic(config)).await?;
        match created {
            Ok(topic) => {
                tracing::info!(
                    topic = name,
                    queues = topic.config().queues,
                    "topic created on first use"
                );
                Ok(topic)
            }
            // Somebody else was first.
            Err(TopicError::Exists { .. }) => self.store.topic(name).ok_or_else(unknown),
            Err(error) => Err((error.code(), error.to_string())),
        }
    }

    /// Settings of a topic nobody has given any.
    pub(crate) fn default_topic(&self, name: &str) -> TopicConfig {
        TopicConfig {
            name: name.to_owned(),
            queues: self.config.broker.default_queues,
            durability: match self.config.broker.default_durability {
                DefaultDurability::Write => Durability::Write,
                DefaultDurability::Flush => Durability::Flush,
            },
            retention_ms: 0,
            retention_bytes: 0,
            created_ms: now_ms(),
        }
    }
}

fn stopping() -> Failure {
    (ErrorCode::ShuttingDown, "the broker is stopping".to_owned())
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
