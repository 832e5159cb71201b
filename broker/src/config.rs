//! What a broker can be told, and where it is told it.
//!
//! Defaults, then a TOML file, then `LONGWIRE_*` variables, then flags: each overrides the one
//! before ([`load()`]). docs/configuration.md lists every key.

mod check;
mod human;
mod load;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use check::InvalidConfig;
pub use load::{ConfigError, Loaded, Sources, load};

/// Everything a broker can be told. `Config::default()` is a broker on this machine only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The folder of the store. One broker at a time.
    pub data_dir: PathBuf,
    /// Topics.
    pub broker: BrokerConfig,
    /// Addresses.
    pub listen: ListenConfig,
    /// The log.
    pub storage: StorageConfig,
    /// How records reach consumers.
    pub transfer: TransferConfig,
    /// What clients may take.
    pub limits: LimitsConfig,
    /// Consumer groups.
    pub groups: GroupsConfig,
    /// Threads.
    pub runtime: RuntimeConfig,
    /// Logs.
    pub log: LogConfig,
}

/// Topics that come into being without being asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// Create a topic when it is first produced to or subscribed to.
    pub auto_create_topics: bool,
    /// Queues of a topic that does not say.
    pub default_queues: u32,
    /// Durability of a topic that does not say.
    pub default_durability: DefaultDurability,
}

/// When a record is acknowledged and may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultDurability {
    /// In the page cache; a power cut can take the newest records back.
    Write,
    /// Flushed to disk.
    Flush,
}

/// Where the broker listens. Port 0 takes any free port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// Data plane.
    #[serde(with = "human")]
    pub data: SocketAddr,
    /// gRPC control plane; the address clients are given.
    #[serde(with = "human")]
    pub control: SocketAddr,
    /// Health and metrics.
    #[serde(with = "human")]
    pub http: SocketAddr,
    /// `host:port` clients are told to dial for the data plane, where it is not what `data` says.
    #[serde(with = "human")]
    pub advertised_data: Option<String>,
}

/// The log. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// Size of one segment file.
    #[serde(with = "human")]
    pub segment_bytes: u64,
    /// How appended bytes enter a segment.
    pub append_path: AppendPath,
    /// How long records at durability `write` may stay unsynced.
    #[serde(with = "human")]
    pub flush_interval: Duration,
    /// A checkpoint is written this long after the first record that the one before lacks, or when
    /// `checkpoint_bytes` were appended: it bounds what a restart after a crash has to scan.
    #[serde(with = "human")]
    pub checkpoint_interval: Duration,
    /// See `checkpoint_interval`.
    #[serde(with = "human")]
    pub checkpoint_bytes: u64,
    /// Segments whose newest record is older are deleted. `None` keeps them.
    #[serde(with = "human")]
    pub retention_age: Option<Duration>,
    /// The oldest segments are deleted when the log is larger. `None` keeps them.
    #[serde(with = "human")]
    pub retention_bytes: Option<u64>,
    /// How often retention looks.
    #[serde(with = "human")]
    pub retention_check_interval: Duration,
}

/// How appended bytes enter a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppendPath {
    /// Copied into the mapped file.
    Mapped,
    /// Written with `pwrite`.
    Pwrite,
}

/// How records reach consumers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransferConfig {
    /// Which path sends a range.
    pub mode: TransferMode,
    /// Threads that read cold ranges into memory. With 0 the threads that serve sockets wait for the
    /// disk themselves, and everyone they serve waits with them.
    pub io_threads: usize,
    /// Congestion control of data connections (`cubic`, `reno`, `bbr`); `None` leaves the system's.
    #[serde(with = "human")]
    pub congestion_control: Option<String>,
    /// Send buffer of data connections (`SO_SNDBUF`); `None` lets the system tune it.
    #[serde(with = "human")]
    pub send_buffer_bytes: Option<u64>,
    /// Unsent bytes a data connection may hold in the kernel (`TCP_NOTSENT_LOWAT`); `None` for no
    /// bound. It limits what a slow consumer pins in the page cache.
    #[serde(with = "human")]
    pub notsent_lowat_bytes: Option<u64>,
}

/// Which path sends a range of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferMode {
    /// The best for each run of ranges.
    Adaptive,
    /// Always `sendfile`.
    Sendfile,
    /// Always gathered from the mapping.
    Mmap,
    /// Always read, then written.
    Buffered,
    /// Always `splice`, through a pipe of the connection: to compare with.
    Splice,
}

/// What clients may take of the broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Connections of the data plane, and again of the control plane.
    pub connections_max: usize,
    /// Unanswered requests of one data connection.
    pub in_flight_per_connection: u32,
    /// Memory that request bodies may take together.
    #[serde(with = "human")]
    pub request_memory_bytes: u64,
    /// Memory that fetches which wait for records may take together.
    #[serde(with = "human")]
    pub parked_memory_bytes: u64,
    /// How long the rest of a frame may take once it has begun.
    #[serde(with = "human")]
    pub frame_timeout: Duration,
    /// How long a connection may take none of an answer.
    #[serde(with = "human")]
    pub stall_timeout: Duration,
    /// How long a new connection may take to say what it is.
    #[serde(with = "human")]
    pub hello_timeout: Duration,
}

/// Consumer groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupsConfig {
    /// How long a member may take to give up a queue before it goes to the next one regardless.
    #[serde(with = "human")]
    pub release_timeout: Duration,
    /// Silence after which the kernel probes a control connection, so that the members of a
    /// machine that is gone are found (TCP keepalive; costs the broker no wake-ups).
    #[serde(with = "human")]
    pub keepalive_interval: Duration,
    /// How long such probes may stay unanswered.
    #[serde(with = "human")]
    pub keepalive_timeout: Duration,
    /// How often a control connection is pinged over HTTP/2, so that the members of a process
    /// that hangs are found.
    #[serde(with = "human")]
    pub ping_interval: Duration,
    /// How long a ping may stay unanswered.
    #[serde(with = "human")]
    pub ping_timeout: Duration,
    /// Members of one group.
    pub members_max: usize,
    /// Topics one member can subscribe to.
    pub topics_per_member_max: usize,
}

/// Threads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Threads of the data plane; 0 for one per core.
    pub data_threads: usize,
    /// Threads of control plane and HTTP together.
    pub control_threads: usize,
}

/// Logs, which go to standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Shape of a line.
    pub format: LogFormat,
    /// `off`, `error`, `warn`, `info`, `debug`, `trace`, or the finer syntax of `tracing`'s `EnvFilter`.
    pub filter: String,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

const DATA_PORT: u16 = 7650;
const CONTROL_PORT: u16 = 7651;
const HTTP_PORT: u16 = 7652;

impl Config {
    /// A broker of its own for a test or a demonstration: any free ports, the given folder.
    pub fn ephemeral(data_dir: impl Into<PathBuf>) -> Config {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Config {
            data_dir: data_dir.into(),
            listen: ListenConfig {
                data: any_port,
                control: any_port,
                http: any_port,
                advertised_data: None,
            },
            ..Config::default()
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data_dir: PathBuf::from("./longwire-data"),
            broker: BrokerConfig::default(),
            listen: ListenConfig::default(),
            storage: StorageConfig::default(),
            transfer: TransferConfig::default(),
            limits: LimitsConfig::default(),
            groups: GroupsConfig::default(),
            runtime: RuntimeConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for BrokerConfig {
    fn default() -> BrokerConfig {
        BrokerConfig {
            auto_create_topics: true,
            default_queues: 8,
            default_durability: DefaultDurability::Flush,
        }
    }
}

impl Default for ListenConfig {
    fn default() -> ListenConfig {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        ListenConfig {
            data: local(DATA_PORT),
            control: local(CONTROL_PORT),
            http: local(HTTP_PORT),
            advertised_data: None,
        }
    }
}

impl Default for StorageConfig {
    fn default() -> StorageConfig {
        StorageConfig {
            segment_bytes: 1 << 30,
            append_path: AppendPath::Pwrite,
            flush_interval: Duration::from_millis(500),
            checkpoint_interval: Duration::from_secs(10),
            checkpoint_bytes: 256 << 20,
            retention_age: Some(Duration::from_secs(7 * 24 * 3600)),
            retention_bytes: None,
            retention_check_interval: Duration::from_secs(60),
        }
    }
}

impl Default for TransferConfig {
    fn default() -> TransferConfig {
        TransferConfig {
            mode: TransferMode::Adaptive,
            io_threads: 4,
            congestion_control: None,
            send_buffer_bytes: None,
            notsent_lowat_bytes: Some(256 << 10),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            connections_max: 10_000,
            in_flight_per_connection: 256,
            request_memory_bytes: 128 << 20,
            parked_memory_bytes: 128 << 20,
            frame_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            hello_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for GroupsConfig {
    fn default() -> GroupsConfig {
        GroupsConfig {
            release_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(3),
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(10),
            members_max: 1_000,
            topics_per_member_max: 10_000,
        }
    }
}

impl Default for RuntimeConfig {
    fn default() -> RuntimeConfig {
        RuntimeConfig { data_threads: 0, control_threads: 1 }
    }
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { format: LogFormat::Text, filter: "info".into() }
    }
}
