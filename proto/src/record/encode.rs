//! A record from its parts, as a producer sends it.

use std::net::{IpAddr, SocketAddr};

use bytes::BufMut;

use super::{CHECKSUM_PROPERTY_BYTES, MAGIC_V1, RECORD_BYTES_MIN};
use super::{crc32, encode_property, has_separator, host_bytes, property, sys_flag};
use crate::limits::{BODY_BYTES_MAX, PROPERTIES_BYTES_MAX};
use crate::name::{NameError, check_topic};

/// What comes before the body at most, with IPv6 hosts.
const HEAD_BYTES_MAX: usize = 112;

/// What a producer knows of a record. [`encode`](RecordDraft::encode) turns it into bytes.
#[derive(Debug, Clone, Copy)]
pub struct RecordDraft<'a> {
    /// The topic it goes to.
    pub topic: &'a str,
    /// The queue it goes to.
    pub queue: u32,
    /// For the application; the broker never looks at it.
    pub flag: i32,
    /// Compression bits ([`sys_flag`]). The host bits are set by `encode`.
    pub sys_flag: u32,
    /// When the producer made it, in milliseconds since 1970.
    pub born_timestamp_ms: i64,
    /// Where the producer is.
    pub born_host: SocketAddr,
    /// Whether to reserve room for an IPv6 store host; the broker says so in its hello.
    pub store_host_v6: bool,
    /// The tag to filter by; empty for none.
    pub tag: &'a str,
    /// Lookup keys separated by blanks; empty for none.
    pub keys: &'a str,
    /// Further properties. Neither name nor value may be empty: RocketMQ passes such ones over.
    pub properties: &'a [(&'a str, &'a str)],
    /// The body, compressed if `sys_flag` says so.
    pub body: &'a [u8],
}

impl Default for RecordDraft<'_> {
    fn default() -> Self {
        RecordDraft {
            topic: "",
            queue: 0,
            flag: 0,
            sys_flag: 0,
            born_timestamp_ms: 0,
            born_host: SocketAddr::from(([127, 0, 0, 1], 0)),
            store_host_v6: false,
            tag: "",
            keys: "",
            properties: &[],
            body: b"",
        }
    }
}

/// Why a record cannot be encoded. Nothing has been written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The topic's name is not allowed.
    #[error(transparent)]
    Topic(#[from] NameError),
    /// The queue number does not fit the format.
    #[error("queue {0} does not exist: queue numbers end at 2147483647")]
    Queue(u32),
    /// The body is over its limit.
    #[error("a body of {0} bytes is over the limit of {BODY_BYTES_MAX}")]
    Body(usize),
    /// The properties are over their limit.
    #[error("properties of {0} bytes are over the limit of {PROPERTIES_BYTES_MAX}")]
    Properties(usize),
    /// A property has an empty name or value, or one with a byte 0x01 or 0x02.
    #[error("property {0:?} cannot be stored: name or value is empty or contains 0x01 or 0x02")]
    Property(String),
    /// A property only the broker may set.
    #[error("property {0:?} is reserved")]
    Reserved(String),
}

impl RecordDraft<'_> {
    /// Appends the record to `out` and returns its size in bytes.
    ///
    /// The broker-owned fields are zero, and room for the whole-record checksum is the last
    /// property.
    ///
    /// # Panics
    ///
    /// If `out` cannot grow and has no room for the record; a `Vec` and a `BytesMut` can.
    pub fn encode(&self, out: &mut impl BufMut) -> Result<usize, EncodeError> {
        let properties_bytes = self.check()?;
        let born_v6 = self.born_host.is_ipv6();
        let mut flags = self.sys_flag & !(sys_flag::BORN_HOST_V6 | sys_flag::STORE_HOST_V6);
        flags |= if born_v6 { sys_flag::BORN_HOST_V6 } else { 0 };
        flags |= if self.store_host_v6 { sys_flag::STORE_HOST_V6 } else { 0 };
        let hosts_bytes = host_bytes(born_v6) + host_bytes(self.store_host_v6);
        let size = RECORD_BYTES_MIN - 16
            + hosts_bytes
            + self.body.len()
            + self.topic.len()
            + properties_bytes;

        let room = out.remaining_mut();
        // Put together here, as room is checked for with every put.
        let mut head = [0; HEAD_BYTES_MAX];
        let mut rest = &mut head[..];
        rest.put_u32(size as u32);
        rest.put_u32(MAGIC_V1);
        rest.put_u32(crc32(self.body));
        rest.put_u32(self.queue);
        rest.put_i32(self.flag);
        rest.put_bytes(0, 16); // queue offset, physical offset
        rest.put_u32(flags);
        rest.put_i64(self.born_timestamp_ms);
        put_host(&mut rest, self.born_host);
        rest.put_bytes(0, 8); // store timestamp
        rest.put_bytes(0, host_bytes(self.store_host_v6));
        rest.put_bytes(0, 12); // reconsume times, prepared transaction offset
        rest.put_u32(self.body.len() as u32);
        let head_bytes = HEAD_BYTES_MAX - rest.len();
        out.put_slice(&head[..head_bytes]);
        out.put_slice(self.body);
        out.put_u8(self.topic.len() as u8);
        out.put_slice(self.topic.as_bytes());
        out.put_u16(properties_bytes as u16);
        for (name, value) in self.all_properties() {
            encode_property(out, name, value);
        }
        encode_property(out, property::CHECKSUM, "0000000000");
        debug_assert_eq!(room - out.remaining_mut(), size);
        Ok(size)
    }

    fn all_properties(&self) -> impl Iterator<Item = (&str, &str)> {
        let known = [(property::TAGS, self.tag), (property::KEYS, self.keys)];
        known.into_iter().filter(|(_, v)| !v.is_empty()).chain(self.properties.iter().copied())
    }

    /// Checks every limit and returns the size of the property block.
    fn check(&self) -> Result<usize, EncodeError> {
        check_topic(self.topic)?;
        if i32::try_from(self.queue).is_err() {
            return Err(EncodeError::Queue(self.queue));
        }
        if self.body.len() > BODY_BYTES_MAX {
            return Err(EncodeError::Body(self.body.len()));
        }
        let mut bytes = CHECKSUM_PROPERTY_BYTES;
        for (name, value) in self.all_properties() {
            let empty = name.is_empty() || value.is_empty();
            if empty || has_separator(name) || has_separator(value) {
                return Err(EncodeError::Property(name.chars().take(40).collect()));
            }
            if name == property::CHECKSUM {
                return Err(EncodeError::Reserved(name.to_owned()));
            }
            bytes += name.len() + value.len() + 2;
        }
        if bytes > PROPERTIES_BYTES_MAX {
            return Err(EncodeError::Properties(bytes));
        }
        Ok(bytes)
    }
}

fn put_host(out: &mut impl BufMut, host: SocketAddr) {
    match host.ip() {
        IpAddr::V4(ip) => out.put_slice(&ip.octets()),
        IpAddr::V6(ip) => out.put_slice(&ip.octets()),
    }
    out.put_u32(host.port().into());
}
