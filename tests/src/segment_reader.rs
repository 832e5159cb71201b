//! Reads the messages out of a store's raw segment files, after docs/format.md alone.
//!
//! It shares no code with `longwire-proto` and `longwire-storage`: what it finds is what a reader in
//! another language, or a RocketMQ tool, would find. Everything that can be verified is: file names
//! and sizes, that positions adjoin, the lengths inside each record, the physical offset, both
//! checksums, the blank record at a segment's end, and that nothing but zeros follows the last record.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

const MAGIC_V1: u32 = 0xDAA3_20A7;
const MAGIC_V2: u32 = 0xDAA3_20AB;
const MAGIC_BLANK: u32 = 0xCBD4_3194;
const RECORD_BYTES_MIN: u32 = 91;
const RECORD_BYTES_MAX: u32 = (4 << 20) + (64 << 10);
const CHECKSUM_PROPERTY_BYTES: usize = 20;

/// One message, with every field its record has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The record's byte address in the log.
    pub position: u64,
    /// The record's size in bytes.
    pub size: u32,
    /// Its topic.
    pub topic: String,
    /// Its queue.
    pub queue: u32,
    /// Its number in the queue.
    pub offset: u64,
    /// The application's flag.
    pub flag: i32,
    /// Compression and address bits.
    pub sys_flag: u32,
    /// When it was made, in milliseconds since 1970.
    pub born_timestamp_ms: i64,
    /// Where it was made.
    pub born_host: SocketAddr,
    /// When it was stored, in milliseconds since 1970.
    pub store_timestamp_ms: i64,
    /// Where it was stored.
    pub store_host: SocketAddr,
    /// How often it was consumed again.
    pub reconsume_times: u32,
    /// The position of its half message.
    pub prepared_transaction_offset: u64,
    /// The body, maybe compressed.
    pub body: Vec<u8>,
    /// The properties in order, without the checksum.
    pub properties: Vec<(String, String)>,
    /// Whether it ends with the whole-record checksum.
    pub has_checksum: bool,
}

/// What is wrong, and where.
#[derive(Debug)]
pub struct Fault {
    file: PathBuf,
    position: u64,
    reason: String,
}

impl Fault {
    /// The position of the first bad byte range.
    pub fn position(&self) -> u64 {
        self.position
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: position {}: {}", self.file.display(), self.position, self.reason)
    }
}

impl std::error::Error for Fault {}

/// Walks all segments of a store, oldest first. Ends after the last record, or after a fault.
///
/// The broker should be stopped: an append under way looks like a fault at the tail.
#[derive(Debug)]
pub struct SegmentReader {
    /// Segments still to read, the next one last.
    waiting: Vec<Segment>,
    current: Option<Current>,
    /// Where the last record ended.
    end: u64,
    checksum_required: bool,
    over: bool,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    base: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Current {
    segment: Segment,
    file: BufReader<File>,
    position: u64,
}

/// What stands at a position.
enum Found {
    Record(Vec<u8>),
    Blank,
    Zeros,
}

impl SegmentReader {
    /// A reader of the segments below `{store_dir}/commitlog`.
    pub fn open(store_dir: &Path) -> Result<SegmentReader, Fault> {
        let dir = store_dir.join("commitlog");
        let mut segments = list(&dir).map_err(|error| fault(&dir, 0, error))?;
        segments.sort_by_key(|segment| segment.base);
        for pair in segments.windows(2) {
            let expected = pair[0].base + pair[0].bytes;
            if pair[1].base != expected {
                let reason = format!("the segment before it ends at {expected}");
                return Err(fault(&pair[1].path, pair[1].base, reason));
            }
        }
        let end = segments.first().map_or(0, |segment| segment.base);
        segments.reverse();
        Ok(SegmentReader {
            waiting: segments,
            current: None,
            end,
            checksum_required: false,
            over: false,
        })
    }

    /// Takes a record without the whole-record checksum for a fault. Longwire writes none; RocketMQ
    /// writes them unless told otherwise.
    #[must_use]
    pub fn require_checksums(mut self) -> SegmentReader {
        self.checksum_required = true;
        self
    }

    /// The position after the last record read.
    pub fn end(&self) -> u64 {
        self.end
    }

    fn step(&mut self) -> Result<Option<Message>, Fault> {
        loop {
            let Some(current) = &mut self.current else {
                let Some(segment) = self.waiting.pop() else {
                    return Ok(None);
                };
                let file = File::open(&segment.path);
                let file = file.map_err(|error| fault(&segment.path, segment.base, error))?;
                let position = segment.base;
                self.current = Some(Current { segment, file: BufReader::new(file), position });
                continue;
            };
            let Current { segment, position, .. } = &*current;
            let (path, position) = (segment.path.clone(), *position);
            let at_fault = |reason: String| fault(&path, position, reason);
            match current.next().map_err(at_fault)? {
                Found::Record(bytes) => {
                    let message = parse(&bytes, position).map_err(at_fault)?;
                    if self.checksum_required && !message.has_checksum {
                        return Err(at_fault("the whole-record checksum is missing".into()));
                    }
                    self.end = current.position;
                    return Ok(Some(message));
                }
                Found::Blank => self.current = None,
                Found::Zeros => {
                    self.check_nothing_follows()?;
                    return Ok(None);
                }
            }
        }
    }

    /// Segments behind the tail are prepared ones: nothing is in them yet.
    fn check_nothing_follows(&mut self) -> Result<(), Fault> {
        while let Some(segment) = self.waiting.pop() {
            let zeros = File::open(&segment.path).and_then(only_zeros);
            match zeros {
                Ok(true) => {}
                Ok(false) => {
                    let reason = "there is something in a segment behind the end of the log";
                    return Err(fault(&segment.path, segment.base, reason));
                }
                Err(error) => return Err(fault(&segment.path, segment.base, error)),
            }
        }
        Ok(())
    }
}

impl Iterator for SegmentReader {
    type Item = Result<Message, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let step = self.step();
        self.over = !matches!(step, Ok(Some(_)));
        step.transpose()
    }
}

impl Current {
    /// Reads what stands at the position, and moves behind it.
    fn next(&mut self) -> Result<Found, String> {
        let left = self.segment.base + self.segment.bytes - self.position;
        if left < 8 {
            return Err(format!("{left} bytes are left, too few for a blank record"));
        }
        let mut head = [0; 8];
        self.file.read_exact(&mut head).map_err(|error| error.to_string())?;
        let (size, magic) = (u32_at(&head, 0), u32_at(&head, 4));
        match magic {
            MAGIC_BLANK if u64::from(size) == left => Ok(Found::Blank),
            MAGIC_BLANK => Err(format!("a blank record of {size} bytes where {left} are left")),
            0 if size == 0 => match only_zeros(&mut self.file) {
                Ok(true) => Ok(Found::Zeros),
                Ok(false) => Err("there is something behind the end of the log".into()),
                Err(error) => Err(error.to_string()),
            },
            MAGIC_V1 | MAGIC_V2 => {
                if !(RECORD_BYTES_MIN..=RECORD_BYTES_MAX).contains(&size) {
                    return Err(format!("a record of {size} bytes"));
                }
                // At least the blank record's eight bytes must be left behind it.
                if u64::from(size) + 8 > left {
                    return Err(format!("a record of {size} bytes where {left} are left"));
                }
                let mut bytes = vec![0; size as usize];
                bytes[..8].copy_from_slice(&head);
                self.file.read_exact(&mut bytes[8..]).map_err(|error| error.to_string())?;
                self.position += u64::from(size);
                Ok(Found::Record(bytes))
            }
            other => Err(format!("magic number {other:#010x}")),
        }
    }
}

/// Takes a record apart and verifies it.
fn parse(record: &[u8], position: u64) -> Result<Message, String> {
    let mut fields = Fields(record);
    let size = fields.u32()?;
    let magic = fields.u32()?;
    let body_crc = fields.u32()?;
    let queue = fields.u32()?;
    let flag = fields.u32()? as i32;
    let offset = fields.u64()?;
    let physical_offset = fields.u64()?;
    let sys_flag = fields.u32()?;
    let born_timestamp_ms = fields.u64()? as i64;
    let born_host = fields.host(sys_flag & 0x10 != 0)?;
    let store_timestamp_ms = fields.u64()? as i64;
    let store_host = fields.host(sys_flag & 0x20 != 0)?;
    let reconsume_times = fields.u32()?;
    let prepared_transaction_offset = fields.u64()?;
    let body_bytes = fields.u32()? as usize;
    let body = fields.take(body_bytes)?.to_vec();
    let topic_bytes = if magic == MAGIC_V2 { fields.u16()? } else { fields.take(1)?[0].into() };
    let topic = text(fields.take(topic_bytes.into())?)?;
    let properties_bytes = fields.u16()?;
    let mut properties = fields.take(properties_bytes.into())?;
    if !fields.0.is_empty() {
        return Err(format!("{} bytes too many in the record", fields.0.len()));
    }
    if physical_offset != position {
        return Err(format!("the record says it stands at {physical_offset}"));
    }
    if body_crc != crc(&body) {
        return Err("the body's checksum is wrong".into());
    }
    let has_checksum = ends_with_checksum(properties);
    if has_checksum {
        let (covered, checksum) = record.split_at(record.len() - CHECKSUM_PROPERTY_BYTES);
        if checksum[9..19] != checksum_digits(covered) {
            return Err("the whole-record checksum is wrong".into());
        }
        properties = &properties[..properties.len() - CHECKSUM_PROPERTY_BYTES];
    }
    let properties = pairs(properties)?;
    Ok(Message {
        position,
        size,
        topic,
        queue,
        offset,
        flag,
        sys_flag,
        born_timestamp_ms,
        born_host,
        store_timestamp_ms,
        store_host,
        reconsume_times,
        prepared_transaction_offset,
        body,
        properties,
        has_checksum,
    })
}

fn ends_with_checksum(properties: &[u8]) -> bool {
    let Some(start) = properties.len().checked_sub(CHECKSUM_PROPERTY_BYTES) else {
        return false;
    };
    let last = &properties[start..];
    last.starts_with(b"__CRC32#\x01")
        && last[19] == 0x02
        && last[9..19].iter().all(|b| b.is_ascii_digit())
}

/// The checksum's ten decimal digits, the last one first.
fn checksum_digits(covered: &[u8]) -> Vec<u8> {
    format!("{:010}", crc(covered)).bytes().rev().collect()
}

fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes) & 0x7FFF_FFFF
}

fn pairs(block: &[u8]) -> Result<Vec<(String, String)>, String> {
    let pairs = block.split(|&b| b == 0x02).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let split = pair.iter().position(|&b| b == 0x01).ok_or("a property without a value")?;
            Ok((text(&pair[..split])?, text(&pair[split + 1..])?))
        })
        .collect()
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| format!("{bytes:x?} is not UTF-8"))
}

/// What is left of a record.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let Some((taken, rest)) = self.0.split_at_checked(count) else {
            return Err(format!("{count} bytes are said to follow and {} do", self.0.len()));
        };
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, String> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32_at(self.take(4)?, 0))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }

    fn host(&mut self, v6: bool) -> Result<SocketAddr, String> {
        let ip: IpAddr = if v6 {
            let high = u128::from(self.u64()?);
            Ipv6Addr::from(high << 64 | u128::from(self.u64()?)).into()
        } else {
            Ipv4Addr::from(self.u32()?).into()
        };
        let port = self.u32()?;
        let port = u16::try_from(port).map_err(|_| format!("port {port} does not exist"))?;
        Ok(SocketAddr::new(ip, port))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn list(dir: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let base = name.parse().ok().filter(|_| name.len() == 20);
        let base = base.ok_or_else(|| io::Error::other(format!("{name:?} is not a segment")))?;
        segments.push(Segment { path: entry.path(), base, bytes: entry.metadata()?.len() });
    }
    Ok(segments)
}

/// Whether nothing but zeros is left to read.
fn only_zeros(mut file: impl Read) -> io::Result<bool> {
    const STEP: usize = 64 << 10;
    let (mut buffer, zeros) = (vec![0; STEP], vec![0; STEP]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(true);
        }
        if buffer[..read] != zeros[..read] {
            return Ok(false);
        }
    }
}

fn fault(file: &Path, position: u64, reason: impl ToString) -> Fault {
    Fault { file: file.to_owned(), position, reason: reason.to_string() }
}
