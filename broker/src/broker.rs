//! Starting and stopping: who begins before whom, and who ends after whom.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use longwire_storage::{CloseError, OpenError, Store, StoreConfig};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{AppendPath, Config, InvalidConfig, RuntimeConfig};
use crate::groups::Coordinator;
use crate::metrics::Metrics;
use crate::state::BrokerState;
use crate::{control, data, descriptors, http};

/// How long open requests may take to be answered when the broker stops.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(400);

/// A running broker.
///
/// It has threads of its own, so it can be started and used from any async runtime. Stop it with
/// [`shutdown`](Broker::shutdown). Dropped without that it stops at once, like a killed process:
/// what was acknowledged is there at the next start, which has to recover.
#[derive(Debug)]
pub struct Broker {
    state: Arc<BrokerState>,
    addresses: Addresses,
    data: Option<JoinHandle<()>>,
    control: Option<JoinHandle<()>>,
    http: Option<JoinHandle<()>>,
    http_stop: CancellationToken,
    runtimes: Runtimes,
}

#[derive(Debug, Clone, Copy)]
struct Addresses {
    data: SocketAddr,
    control: SocketAddr,
    http: SocketAddr,
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address} for {setting}: {source}; choose another with --set {setting}="
    )]
    Listen {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The system does not have this congestion control, or not for this user.
    #[error(
        "transfer.congestion_control {name:?} cannot be used: {source}; \
         'sysctl net.ipv4.tcp_available_congestion_control' shows what there is"
    )]
    CongestionControl {
        /// What was configured.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The process may open too few files for a broker to be of use.
    #[error(
        "the limit of open files is {limit}, of which {open} are open: too few to serve with. \
         Raise it: ulimit -n, LimitNOFILE= of systemd"
    )]
    FewDescriptors {
        /// The limit of the process.
        limit: u64,
        /// How many it had open.
        open: u64,
    },
    /// Threads cannot be started.
    #[error("cannot start threads: {0}")]
    Threads(io::Error),
}

impl Broker {
    /// Starts a broker; when this returns, its ports are served.
    pub async fn start(mut config: Config) -> Result<Broker, StartError> {
        config.check()?;
        descriptors::check(&config)?;
        let runtimes = Runtimes::new(&config.runtime).map_err(StartError::Threads)?;
        let control = runtimes.control().clone();
        let listeners = match Listeners::bind(&config) {
            Ok(listeners) => listeners,
            Err(error @ StartError::Listen { .. }) => {
                return Err(explain(&control, &config, error).await);
            }
            Err(error) => return Err(error),
        };
        let addresses = listeners.addresses().map_err(StartError::Threads)?;

        let metrics = Metrics::new();
        let started = http::Started::default();
        let http_stop = CancellationToken::new();
        let listener = listeners.http;
        let serve_http = {
            let (started, stop) = (Arc::clone(&started), http_stop.clone());
            let refused = metrics.refused_connections.clone();
            async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => http::serve(listener, started, refused, stop).await,
                    Err(error) => tracing::error!(%error, "HTTP is not served"),
                }
            }
        };
        let http = control.spawn(serve_http);

        let host = store_host(&config, addresses.data);
        let store = open_store(&control, store_config(&config, host)).await?;
        descriptors::limit_connections(&mut config)?;
        let groups = Coordinator::new(Arc::clone(&store), config.groups.clone(), control.clone());
        let advertised = match &config.listen.advertised_data {
            Some(address) => address.clone(),
            None => addresses.data.to_string(),
        };
        let state = Arc::new(BrokerState::new(config, store, metrics, groups, host, advertised));
        let data = serve_on(runtimes.data(), listeners.data, &state, data::serve)?;
        let control = serve_on(&control, listeners.control, &state, control::serve)?;
        // Nobody else sets it.
        let _ = started.set(Arc::clone(&state));
        Ok(Broker {
            state,
            addresses,
            data: Some(data),
            control: Some(control),
            http: Some(http),
            http_stop,
            runtimes,
        })
    }

    /// Where the data plane listens.
    pub fn data_addr(&self) -> SocketAddr {
        self.addresses.data
    }

    /// Where the control plane listens: the address to give a client.
    pub fn control_addr(&self) -> SocketAddr {
        self.addresses.control
    }

    /// Where health and metrics are.
    pub fn http_addr(&self) -> SocketAddr {
        self.addresses.http
    }

    /// The store, for looking into it.
    pub fn store(&self) -> &Arc<Store> {
        &self.state.store
    }

    /// Completes, with the reason, when the store has failed. Nothing is acknowledged any more then,
    /// and the process should end.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        self.state.store.failed()
    }

    /// Stops: accepts nothing more, ends what waits, answers what is open, closes the store.
    ///
    /// Clients are given up on after 400 ms; closing the store takes what flushing the rest takes.
    /// Fails if the store could not be closed cleanly, in which case the next start recovers it.
    pub async fn shutdown(mut self) -> Result<(), CloseError> {
        self.state.shutdown.cancel();
        let (data, control) = (self.data.take(), self.control.take());
        let drain = async move {
            let both = async {
                join(data).await;
                join(control).await;
            };
            if tokio::time::timeout(DRAIN_TIMEOUT, both).await.is_err() {
                tracing::debug!("some clients took too long to be answered");
            }
        };
        // The timer must be that of a runtime of ours.
        join(Some(self.runtimes.control().spawn(drain))).await;
        let store = Arc::clone(&self.state.store);
        let closed = self.runtimes.control().spawn_blocking(move || store.close()).await;
        self.http_stop.cancel();
        let http = self.http.take();
        // Half a request is not waited for as long as it may take.
        let drain = async { drop(tokio::time::timeout(DRAIN_TIMEOUT, join(http)).await) };
        join(Some(self.runtimes.control().spawn(drain))).await;
        closed.unwrap_or_else(|error| Err(CloseError::Checkpoint(error.to_string())))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.state.shutdown.cancel();
        self.http_stop.cancel();
    }
}

async fn join(task: Option<JoinHandle<()>>) {
    if let Some(task) = task
        && let Err(error) = task.await
        && error.is_panic()
    {
        tracing::error!(%error, "a part of the broker has ended by a fault");
    }
}

/// Runs one plane's `serve` on a runtime.
fn serve_on<F: Future<Output = ()> + Send + 'static>(
    runtime: &Handle,
    listener: StdListener,
    state: &Arc<BrokerState>,
    serve: impl FnOnce(TcpListener, Arc<BrokerState>) -> F,
) -> Result<JoinHandle<()>, StartError> {
    let _entered = runtime.enter();
    let listener = TcpListener::from_std(listener).map_err(StartError::Threads)?;
    Ok(runtime.spawn(serve(listener, Arc::clone(state))))
}

async fn open_store(runtime: &Handle, config: StoreConfig) -> Result<Arc<Store>, StartError> {
    match runtime.spawn_blocking(move || Store::open(config)).await {
        Ok(opened) => Ok(opened?),
        Err(error) => Err(StartError::Threads(io::Error::other(error))),
    }
}

/// A port can be taken because this very store is being served already; then that is the answer.
async fn explain(runtime: &Handle, config: &Config, error: StartError) -> StartError {
    if !config.data_dir.is_dir() {
        return error;
    }
    let any_host = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    match open_store(runtime, store_config(config, any_host)).await {
        Err(locked @ StartError::Store(OpenError::Locked { .. })) => locked,
        Err(_) => error,
        Ok(store) => {
            if let Ok(Err(error)) = runtime.spawn_blocking(move || store.close()).await {
                tracing::warn!(%error, "the store was not closed cleanly");
            }
            error
        }
    }
}

fn store_config(config: &Config, store_host: SocketAddr) -> StoreConfig {
    let storage = &config.storage;
    StoreConfig {
        segment_bytes: storage.segment_bytes,
        append_path: match storage.append_path {
            AppendPath::Mapped => longwire_storage::AppendPath::Mapped,
            AppendPath::Pwrite => longwire_storage::AppendPath::Pwrite,
        },
        store_host,
        flush_interval: storage.flush_interval,
        checkpoint_interval: storage.checkpoint_interval,
        checkpoint_bytes: storage.checkpoint_bytes,
        retention_age: storage.retention_age,
        retention_bytes: storage.retention_bytes,
        retention_check_interval: storage.retention_check_interval,
        ..StoreConfig::new(&config.data_dir)
    }
}

/// What records say about where they are stored: an address, never "any".
fn store_host(config: &Config, data: SocketAddr) -> SocketAddr {
    let advertised =
        config.listen.advertised_data.as_ref().and_then(|address| address.parse().ok());
    let host: SocketAddr = advertised.unwrap_or(data);
    if host.ip().is_unspecified() { (Ipv4Addr::LOCALHOST, host.port()).into() } else { host }
}

struct Listeners {
    data: StdListener,
    control: StdListener,
    http: StdListener,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Listeners, StartError> {
        let listen = &config.listen;
        let fail = |setting, address| move |source| StartError::Listen { setting, address, source };
        Ok(Listeners {
            data: data::bind(config)?,
            control: bind(listen.control).map_err(fail("listen.control", listen.control))?,
            http: bind(listen.http).map_err(fail("listen.http", listen.http))?,
        })
    }

    fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses {
            data: self.data.local_addr()?,
            control: self.control.local_addr()?,
            http: self.http.local_addr()?,
        })
    }
}

fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let listener = StdListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The broker's threads: the data plane's, and those of control plane and HTTP.
#[derive(Debug)]
struct Runtimes {
    data: Option<Runtime>,
    control: Option<Runtime>,
    handles: [Handle; 2],
}

impl Runtimes {
    fn new(config: &RuntimeConfig) -> io::Result<Runtimes> {
        let data_threads = match config.data_threads {
            0 => std::thread::available_parallelism().map_or(2, usize::from),
            threads => threads,
        };
        let data = build("lw-data", data_threads)?;
        let control = build("lw-control", config.control_threads)?;
        let handles = [data.handle().clone(), control.handle().clone()];
        Ok(Runtimes { data: Some(data), control: Some(control), handles })
    }

    fn data(&self) -> &Handle {
        &self.handles[0]
    }

    fn control(&self) -> &Handle {
        &self.handles[1]
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        // Waiting for threads is not allowed where this may be dropped: inside another runtime.
        self.data
            .take()
            .into_iter()
            .chain(self.control.take())
            .for_each(Runtime::shutdown_background);
    }
}

fn build(name: &str, threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build()
}
