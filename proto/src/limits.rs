//! Every maximum of the formats and protocols, in one place.
//!
//! The record limits are RocketMQ's, so that its official clients and tools can read every record.

/// Largest body of one record, in bytes (RocketMQ's `maxMessageSize`).
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest topic name, in bytes: a V1 record stores the length in a signed byte.
pub const TOPIC_BYTES_MAX: usize = 127;

/// Longest group name, in bytes.
pub const GROUP_BYTES_MAX: usize = 120;

/// Largest property block of one record, in bytes: its length is a signed 16-bit number.
pub const PROPERTIES_BYTES_MAX: usize = 32_767;

/// Largest record: the largest body and properties, topic, and the fixed fields with IPv6 hosts.
pub const RECORD_BYTES_MAX: usize = BODY_BYTES_MAX + 64 * 1024;

/// Most queues one topic can have.
pub const QUEUES_PER_TOPIC_MAX: u32 = 65_536;

/// Largest frame header (the protobuf part), in bytes: its length is a 16-bit number.
pub const FRAME_HEADER_BYTES_MAX: usize = u16::MAX as usize;

/// Largest body of a request frame, in bytes. A producer's batch must fit.
pub const REQUEST_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Largest request frame, counted after its length word.
pub const REQUEST_FRAME_BYTES_MAX: usize = 2 + FRAME_HEADER_BYTES_MAX + REQUEST_BODY_BYTES_MAX;

/// Most bytes of records one fetch is answered with, whatever it asks for.
pub const FETCH_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Largest response frame, counted after its length word.
pub const RESPONSE_FRAME_BYTES_MAX: usize = 2 + FRAME_HEADER_BYTES_MAX + FETCH_BYTES_MAX;

/// Most queues one fetch request can name.
pub const QUEUES_PER_FETCH_MAX: usize = 1_024;

/// Most runs one produce request can carry.
pub const RUNS_PER_PRODUCE_MAX: usize = 256;

/// Most tag hashes one fetched topic can be filtered by.
pub const TAGS_PER_FETCH_MAX: usize = 256;

/// Longest time a fetch stays parked, in milliseconds, whatever it asks for.
pub const FETCH_WAIT_MS_MAX: u32 = 60_000;

/// Longest name of a session of data connections, in bytes.
pub const SESSION_BYTES_MAX: usize = 64;

/// The data-plane version this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;

const _: () = assert!(RECORD_BYTES_MAX > BODY_BYTES_MAX + PROPERTIES_BYTES_MAX + 256);
const _: () = assert!(REQUEST_BODY_BYTES_MAX >= RECORD_BYTES_MAX);
const _: () = assert!(FETCH_BYTES_MAX >= RECORD_BYTES_MAX);
