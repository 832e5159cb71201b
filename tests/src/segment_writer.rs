//! Writes segment files as RocketMQ would, after its record layout alone.
//!
//! The counterpart of [`segment_reader`](crate::segment_reader), and as independent of
//! `longwire-proto`: a store that serves what this writes reads RocketMQ's format.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The blank record's size and magic number.
const BLANK_BYTES: u64 = 8;

/// What a record is made from. Where it stands is added by [`SegmentWriter::push`].
#[derive(Debug, Clone)]
pub struct Record {
    /// Topic; over 127 bytes it makes a V2 record.
    pub topic: String,
    /// Queue.
    pub queue: u32,
    /// Number in the queue.
    pub offset: u64,
    /// The application's flag.
    pub flag: i32,
    /// Compression bits; the address bits are added.
    pub sys_flag: u32,
    /// When it was made, in milliseconds since 1970.
    pub born_timestamp_ms: i64,
    /// Where it was made.
    pub born_host: SocketAddr,
    /// When it was stored, in milliseconds since 1970.
    pub store_timestamp_ms: i64,
    /// Where it was stored.
    pub store_host: SocketAddr,
    /// Body.
    pub body: Vec<u8>,
    /// Properties.
    pub properties: Vec<(String, String)>,
    /// Whether it gets the whole-record checksum (`enabledAppendPropCRC`).
    pub checksum: bool,
}

impl Record {
    /// A record as a RocketMQ broker at 10.0.0.2:10911 stores it.
    pub fn new(topic: &str, queue: u32, offset: u64, body: impl Into<Vec<u8>>) -> Record {
        Record {
            topic: topic.into(),
            queue,
            offset,
            flag: 0,
            sys_flag: 0,
            born_timestamp_ms: 1_700_000_000_000,
            born_host: SocketAddr::from(([10, 0, 0, 1], 54_321)),
            store_timestamp_ms: 1_700_000_000_123,
            store_host: SocketAddr::from(([10, 0, 0, 2], 10_911)),
            body: body.into(),
            properties: Vec::new(),
            checksum: true,
        }
    }

    /// Adds a property.
    #[must_use]
    pub fn property(mut self, name: &str, value: &str) -> Record {
        self.properties.push((name.into(), value.into()));
        self
    }

    /// The record's bytes at a position of the log.
    pub fn encode(&self, position: u64) -> Vec<u8> {
        let v2 = self.topic.len() > 127;
        let magic: u32 = if v2 { 0xDAA3_20AB } else { 0xDAA3_20A7 };
        let born_v6 = if self.born_host.is_ipv6() { 0x10 } else { 0 };
        let store_v6 = if self.store_host.is_ipv6() { 0x20 } else { 0 };
        let pairs = self.properties.iter().map(|(name, value)| format!("{name}\x01{value}\x02"));
        let properties = pairs.collect::<String>();
        let checksum_bytes = if self.checksum { 20 } else { 0 };

        let mut bytes = vec![0; 4];
        bytes.extend(magic.to_be_bytes());
        bytes.extend(crc(&self.body).to_be_bytes());
        bytes.extend(self.queue.to_be_bytes());
        bytes.extend(self.flag.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        bytes.extend(position.to_be_bytes());
        bytes.extend((self.sys_flag | born_v6 | store_v6).to_be_bytes());
        bytes.extend(self.born_timestamp_ms.to_be_bytes());
        push_host(&mut bytes, self.born_host);
        bytes.extend(self.store_timestamp_ms.to_be_bytes());
        push_host(&mut bytes, self.store_host);
        bytes.extend([0; 12]); // reconsume times, prepared transaction offset
        bytes.extend((self.body.len() as u32).to_be_bytes());
        bytes.extend(&self.body);
        match v2 {
            true => bytes.extend((self.topic.len() as u16).to_be_bytes()),
            false => bytes.push(self.topic.len() as u8),
        }
        bytes.extend(self.topic.as_bytes());
        bytes.extend(((properties.len() + checksum_bytes) as u16).to_be_bytes());
        bytes.extend(properties.as_bytes());
        let size = (bytes.len() + checksum_bytes) as u32;
        bytes[..4].copy_from_slice(&size.to_be_bytes());
        if self.checksum {
            let digits: String = format!("{:010}", crc(&bytes)).chars().rev().collect();
            bytes.extend(format!("__CRC32#\x01{digits}\x02").as_bytes());
        }
        bytes
    }
}

fn push_host(bytes: &mut Vec<u8>, host: SocketAddr) {
    match host.ip() {
        IpAddr::V4(ip) => bytes.extend(ip.octets()),
        IpAddr::V6(ip) => bytes.extend(ip.octets()),
    }
    bytes.extend(u32::from(host.port()).to_be_bytes());
}

fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes) & 0x7FFF_FFFF
}

/// Lays records out in segment files, one after another.
#[derive(Debug)]
pub struct SegmentWriter {
    dir: PathBuf,
    segment_bytes: u64,
    position: u64,
    file: File,
}

impl SegmentWriter {
    /// A writer of segments of this size below `{store_dir}/commitlog`; the first begins at `base`.
    pub fn create(store_dir: &Path, segment_bytes: u64, base: u64) -> io::Result<SegmentWriter> {
        let dir = store_dir.join("commitlog");
        fs::create_dir_all(&dir)?;
        let file = create_segment(&dir, base, segment_bytes)?;
        Ok(SegmentWriter { dir, segment_bytes, position: base, file })
    }

    /// Where the next record will stand, if it fits into the segment.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Appends a record and returns its position.
    ///
    /// A record that leaves no room for a blank record behind it goes to the next segment.
    pub fn push(&mut self, record: &Record) -> io::Result<u64> {
        let size = record.encode(0).len() as u64;
        if size + BLANK_BYTES > self.left() {
            self.roll()?;
        }
        let position = self.position;
        self.push_bytes(&record.encode(position))?;
        Ok(position)
    }

    /// Appends bytes as they are.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let at = self.segment_bytes - self.left();
        self.file.write_all_at(bytes, at)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Ends the segment with a blank record and begins the next.
    pub fn roll(&mut self) -> io::Result<()> {
        let left = self.left();
        let blank = [(left as u32).to_be_bytes(), 0xCBD4_3194_u32.to_be_bytes()].concat();
        self.push_bytes(&blank)?;
        self.position += left - BLANK_BYTES;
        self.file = create_segment(&self.dir, self.position, self.segment_bytes)?;
        Ok(())
    }

    /// Makes what was written durable.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.sync_all()
    }

    fn left(&self) -> u64 {
        self.segment_bytes - self.position % self.segment_bytes
    }
}

/// A file of zeros.
fn create_segment(dir: &Path, base: u64, bytes: u64) -> io::Result<File> {
    let file = File::create_new(dir.join(format!("{base:020}")))?;
    file.set_len(bytes)?;
    Ok(file)
}
