//! The RocketMQ record: what the log stores is what the wire carries.
//!
//! Big-endian. With IPv4 hosts (an IPv6 host is 12 bytes longer and moves what follows):
//!
//! ```text
//!  off  len  field                       off  len  field
//!    0    4  total size                   64    8  store host: address, port as i32   (B)
//!    4    4  magic 0xDAA320A7             72    4  reconsume times
//!    8    4  body CRC                     76    8  prepared transaction offset
//!   12    4  queue id                     84    4  body length
//!   16    4  flag                         88    n  body
//!   20    8  queue offset          (B)   88+n   1  topic length (V2, 0xDAA320AB: 2)
//!   28    8  physical offset       (B)          t  topic
//!   36    4  sys flag                           2  properties length
//!   40    8  born timestamp, ms                 p  properties: name 0x01 value 0x02 ...
//!   48    8  born host                             the last of them `__CRC32#` 0x01 digits 0x02
//!   56    8  store timestamp, ms   (B)
//! ```
//!
//! The fields marked (B), and the ten digits of the last property, are the broker's: a producer
//! writes zeros there ([`RecordDraft::encode`]) and the broker fills them in place ([`seal`]).
//! Checksums are CRC-32 (IEEE) masked with `0x7FFFFFFF`. The `__CRC32#` property is RocketMQ's own
//! whole-record checksum (5.x, `enabledAppendPropCRC`): it covers every byte before it, and its
//! decimal digits stand least significant first.
//!
//! Source: apache/rocketmq 8fc57f14, `MessageExtEncoder`, `MessageDecoder`, `CommitLog`.

mod encode;
mod properties;
mod seal;
mod view;

pub use encode::{EncodeError, RecordDraft};
pub use properties::{Properties, encode_property, has_separator};
pub use seal::{Placement, seal, write_blank};
pub use view::{RecordError, RecordView};

/// First version: the topic's length is one byte. Longwire writes no other.
pub const MAGIC_V1: u32 = 0xDAA3_20A7;
/// Second version: the topic's length is two bytes. RocketMQ uses it for topics over 127 bytes.
pub const MAGIC_V2: u32 = 0xDAA3_20AB;
/// The blank record that fills the end of a segment: its size, this, and nothing that matters.
pub const MAGIC_BLANK: u32 = 0xCBD4_3194;
/// How many bytes of a blank record are written.
pub const BLANK_BYTES: usize = 8;
/// The smallest record: IPv4 hosts, V1, empty body, topic and properties.
pub const RECORD_BYTES_MIN: usize = 91;
/// What the whole-record checksum takes at the end of a record.
pub const CHECKSUM_PROPERTY_BYTES: usize = 20;

/// Property names RocketMQ gives a meaning to (apache/rocketmq `MessageConst`).
pub mod property {
    /// The tag a consumer can filter by.
    pub const TAGS: &str = "TAGS";
    /// Lookup keys, separated by blanks.
    pub const KEYS: &str = "KEYS";
    /// The ordering key: messages of one key go to one queue.
    pub const SHARDING_KEY: &str = "__SHARDINGKEY";
    /// The whole-record checksum.
    pub const CHECKSUM: &str = "__CRC32#";
}

/// Bits of the sys flag (apache/rocketmq `MessageSysFlag`).
pub mod sys_flag {
    /// The body is compressed.
    pub const COMPRESSED: u32 = 0x1;
    /// The born host is an IPv6 address: 20 bytes instead of 8.
    pub const BORN_HOST_V6: u32 = 0x10;
    /// The store host is an IPv6 address: 20 bytes instead of 8.
    pub const STORE_HOST_V6: u32 = 0x20;
    /// The bits that name the codec of a compressed body. None set means zlib, from old clients.
    pub const CODEC_MASK: u32 = 0x700;
    /// LZ4 frame format.
    pub const CODEC_LZ4: u32 = 0x100;
    /// Zstandard.
    pub const CODEC_ZSTD: u32 = 0x200;
    /// zlib (RFC 1950).
    pub const CODEC_ZLIB: u32 = 0x300;
}

/// Where the fields stand that lie before the first host and so never move.
mod at {
    pub(super) const SIZE: usize = 0;
    pub(super) const MAGIC: usize = 4;
    pub(super) const BODY_CRC: usize = 8;
    pub(super) const QUEUE: usize = 12;
    pub(super) const FLAG: usize = 16;
    pub(super) const OFFSET: usize = 20;
    pub(super) const POSITION: usize = 28;
    pub(super) const SYS_FLAG: usize = 36;
    pub(super) const BORN_TIMESTAMP: usize = 40;
    pub(super) const BORN_HOST: usize = 48;
}

/// RocketMQ's CRC-32: IEEE polynomial, highest bit cleared.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes) & 0x7FFF_FFFF
}

/// The number a consume queue stores for a tag: Java's `String.hashCode`, over UTF-16 units.
pub fn tag_hash(tag: &str) -> i32 {
    tag.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(unit.into()))
}

fn host_bytes(v6: bool) -> usize {
    if v6 { 20 } else { 8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_hashes_are_rocketmqs() {
        assert_eq!(crc32(b"hello"), 907_060_870);
        assert_eq!(crc32(b"123456789"), 1_274_296_614);
        assert_eq!(tag_hash("TagA"), 2_598_919);
        assert_eq!(tag_hash("TagB"), 2_598_920);
        assert_eq!(tag_hash(""), 0);
    }
}
