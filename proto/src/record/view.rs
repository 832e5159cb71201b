//! A record read in place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::seal::checksum_digits;
use super::{CHECKSUM_PROPERTY_BYTES, MAGIC_V1, MAGIC_V2, Properties, RECORD_BYTES_MIN, at};
use super::{crc32, host_bytes, property, sys_flag, tag_hash};
use crate::ErrorCode;
use crate::limits::{BODY_BYTES_MAX, PROPERTIES_BYTES_MAX, RECORD_BYTES_MAX, TOPIC_BYTES_MAX};

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Fewer bytes than the record says it has, or than any record has.
    #[error("the record is cut short: {have} bytes of {need}")]
    Short {
        /// The bytes there are.
        have: usize,
        /// The bytes there should be.
        need: usize,
    },
    /// Not a record's magic number.
    #[error("magic number {0:#010x} is not a record's")]
    Magic(u32),
    /// The total size is impossible.
    #[error("a record of {0} bytes is outside the limits")]
    Size(usize),
    /// Topic, body or properties are over their limit; RocketMQ could not read the record either.
    #[error("the {part} of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Which part: "topic", "body" or "property block".
        part: &'static str,
        /// The length the record gives it.
        bytes: usize,
        /// The most it may have.
        max: usize,
    },
    /// The lengths inside the record do not add up to its total size.
    #[error("the lengths inside the record do not add up to its size of {0} bytes")]
    Lengths(usize),
    /// The topic is not UTF-8.
    #[error("the topic is not UTF-8")]
    Topic,
    /// The body's checksum does not match.
    #[error("the body's checksum is wrong")]
    BodyChecksum,
    /// The whole-record checksum is missing.
    #[error("the whole-record checksum is missing")]
    NoChecksum,
    /// The whole-record checksum does not match.
    #[error("the whole-record checksum is wrong")]
    Checksum,
}

impl RecordError {
    /// The stable code for it.
    pub fn code(&self) -> ErrorCode {
        match self {
            RecordError::TooLarge { .. } => ErrorCode::MessageTooLarge,
            RecordError::Size(bytes) if *bytes > RECORD_BYTES_MAX => ErrorCode::MessageTooLarge,
            RecordError::BodyChecksum | RecordError::Checksum => ErrorCode::CorruptRecord,
            _ => ErrorCode::InvalidRecord,
        }
    }
}

/// One record, borrowed. Its structure is known to be sound; its checksums only when verified.
#[derive(Clone, Copy)]
pub struct RecordView<'a> {
    bytes: &'a [u8],
    topic: &'a str,
    /// Where the store timestamp stands; the born host before it has two sizes.
    timestamp_at: usize,
    body_at: usize,
    body_bytes: usize,
    properties_at: usize,
}

impl<'a> RecordView<'a> {
    /// Reads the record at the start of `bytes`; what follows it is left alone.
    ///
    /// Accepts V1 and V2, with and without the whole-record checksum. Every length is checked
    /// against the bytes there are.
    pub fn parse(bytes: &'a [u8]) -> Result<RecordView<'a>, RecordError> {
        let size = Self::size_of(bytes)?;
        let Some(bytes) = bytes.get(..size) else {
            return Err(RecordError::Short { have: bytes.len(), need: size });
        };
        let flags = be_u32(bytes, at::SYS_FLAG);
        let timestamp_at = at::BORN_HOST + host_bytes(flags & sys_flag::BORN_HOST_V6 != 0);
        let store_host_bytes = host_bytes(flags & sys_flag::STORE_HOST_V6 != 0);
        let body_at = timestamp_at + 8 + store_host_bytes + 16;

        let broken = || RecordError::Lengths(size);
        let mut rest = Cursor { bytes, at: body_at - 4 };
        let body_bytes = rest.u32().ok_or_else(broken)? as usize;
        check_length("body", body_bytes, BODY_BYTES_MAX)?;
        rest.take(body_bytes).ok_or_else(broken)?;
        let (topic_bytes, topic_bytes_max) = match be_u32(bytes, at::MAGIC) {
            MAGIC_V2 => (rest.u16().ok_or_else(broken)? as usize, i16::MAX as usize),
            _ => (rest.take(1).ok_or_else(broken)?[0] as usize, TOPIC_BYTES_MAX),
        };
        check_length("topic", topic_bytes, topic_bytes_max)?;
        let topic = rest.take(topic_bytes).ok_or_else(broken)?;
        let properties_bytes = rest.u16().ok_or_else(broken)? as usize;
        check_length("property block", properties_bytes, PROPERTIES_BYTES_MAX)?;
        let properties_at = rest.at;
        if properties_at + properties_bytes != size {
            return Err(broken());
        }
        let topic = str::from_utf8(topic).map_err(|_| RecordError::Topic)?;
        Ok(RecordView { bytes, topic, timestamp_at, body_at, body_bytes, properties_at })
    }

    /// The total size of the record that begins here, from its first eight bytes.
    pub fn size_of(bytes: &[u8]) -> Result<usize, RecordError> {
        if bytes.len() < 8 {
            return Err(RecordError::Short { have: bytes.len(), need: RECORD_BYTES_MIN });
        }
        let magic = be_u32(bytes, at::MAGIC);
        if magic != MAGIC_V1 && magic != MAGIC_V2 {
            return Err(RecordError::Magic(magic));
        }
        let size = be_u32(bytes, at::SIZE) as usize;
        if !(RECORD_BYTES_MIN..=RECORD_BYTES_MAX).contains(&size) {
            return Err(RecordError::Size(size));
        }
        Ok(size)
    }

    /// The whole record.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// [`MAGIC_V1`] or [`MAGIC_V2`].
    pub fn magic(&self) -> u32 {
        be_u32(self.bytes, at::MAGIC)
    }

    /// The topic it belongs to.
    pub fn topic(&self) -> &'a str {
        self.topic
    }

    /// The queue it belongs to.
    pub fn queue(&self) -> u32 {
        be_u32(self.bytes, at::QUEUE)
    }

    /// The application's flag.
    pub fn flag(&self) -> i32 {
        be_u32(self.bytes, at::FLAG) as i32
    }

    /// Its number in its queue.
    pub fn offset(&self) -> u64 {
        be_u64(self.bytes, at::OFFSET)
    }

    /// Its byte address in the commit log.
    pub fn position(&self) -> u64 {
        be_u64(self.bytes, at::POSITION)
    }

    /// The flags of [`sys_flag`].
    pub fn sys_flag(&self) -> u32 {
        be_u32(self.bytes, at::SYS_FLAG)
    }

    /// When the producer made it, in milliseconds since 1970.
    pub fn born_timestamp_ms(&self) -> i64 {
        be_u64(self.bytes, at::BORN_TIMESTAMP) as i64
    }

    /// Where the producer was.
    pub fn born_host(&self) -> SocketAddr {
        host(&self.bytes[at::BORN_HOST..self.timestamp_at])
    }

    /// When the broker stored it, in milliseconds since 1970.
    pub fn store_timestamp_ms(&self) -> i64 {
        be_u64(self.bytes, self.timestamp_at) as i64
    }

    /// The broker that stored it.
    pub fn store_host(&self) -> SocketAddr {
        host(&self.bytes[self.timestamp_at + 8..self.body_at - 16])
    }

    /// How often it has been consumed again.
    pub fn reconsume_times(&self) -> u32 {
        be_u32(self.bytes, self.body_at - 16)
    }

    /// The position of the prepared message a transaction record refers to.
    pub fn prepared_transaction_offset(&self) -> u64 {
        be_u64(self.bytes, self.body_at - 12)
    }

    /// The body as stored, so maybe compressed.
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[self.body_range()]
    }

    /// Where in [`bytes`](Self::bytes) the body is.
    pub fn body_range(&self) -> std::ops::Range<usize> {
        self.body_at..self.body_at + self.body_bytes
    }

    /// Its properties, without the whole-record checksum.
    pub fn properties(&self) -> Properties<'a> {
        Properties::new(&self.bytes[self.properties_range()])
    }

    /// Where in [`bytes`](Self::bytes) the properties are, without the whole-record checksum.
    pub fn properties_range(&self) -> std::ops::Range<usize> {
        let checksum_bytes = if self.has_checksum() { CHECKSUM_PROPERTY_BYTES } else { 0 };
        self.properties_at..self.size() - checksum_bytes
    }

    /// The tag to filter by.
    pub fn tag(&self) -> Option<&'a str> {
        self.properties().get(property::TAGS)
    }

    /// What the consume queue stores for the tag; 0 where there is none.
    pub fn tag_hash(&self) -> i32 {
        self.tag().map_or(0, tag_hash)
    }

    /// Whether the record ends with room for, or with, the whole-record checksum.
    pub fn has_checksum(&self) -> bool {
        let Some(at) = self.size().checked_sub(CHECKSUM_PROPERTY_BYTES) else {
            return false;
        };
        let last = &self.bytes[at..];
        // The block before must be closed, or the checksum would be part of another property.
        let closed = at == self.properties_at || self.bytes[at - 1] == 0x02;
        at >= self.properties_at
            && closed
            && last.starts_with(property::CHECKSUM.as_bytes())
            && last[8] == 0x01
            && last[9..19].iter().all(u8::is_ascii_digit)
            && last[19] == 0x02
    }

    /// Compares the body with its checksum.
    pub fn verify_body(&self) -> Result<(), RecordError> {
        if crc32(self.body()) == be_u32(self.bytes, at::BODY_CRC) {
            Ok(())
        } else {
            Err(RecordError::BodyChecksum)
        }
    }

    /// Compares the whole record with its checksum. An unsealed record does not pass.
    pub fn verify_checksum(&self) -> Result<(), RecordError> {
        if !self.has_checksum() {
            return Err(RecordError::NoChecksum);
        }
        let covered = self.size() - CHECKSUM_PROPERTY_BYTES;
        let digits = checksum_digits(crc32(&self.bytes[..covered]));
        if self.bytes[covered + 9..covered + 19] == digits {
            Ok(())
        } else {
            Err(RecordError::Checksum)
        }
    }
}

impl std::fmt::Debug for RecordView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordView")
            .field("topic", &self.topic)
            .field("queue", &self.queue())
            .field("offset", &self.offset())
            .field("position", &self.position())
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

/// Reads forward within a record, never past its end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|b| be_u32(b, 0))
    }
}

/// The lengths are signed in RocketMQ: one over its limit would be negative there.
fn check_length(part: &'static str, bytes: usize, max: usize) -> Result<(), RecordError> {
    if bytes > max { Err(RecordError::TooLarge { part, bytes, max }) } else { Ok(()) }
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be_u32(bytes, at)) << 32 | u64::from(be_u32(bytes, at + 4))
}

fn host(bytes: &[u8]) -> SocketAddr {
    let (ip, port) = bytes.split_at(bytes.len() - 4);
    let ip: IpAddr = match <[u8; 16]>::try_from(ip) {
        Ok(v6) => Ipv6Addr::from(v6).into(),
        Err(_) => Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]).into(),
    };
    SocketAddr::new(ip, be_u32(port, 0) as u16)
}
