//! What the broker writes into a record before it becomes visible, and never after.

use std::net::{IpAddr, SocketAddr};

use super::{BLANK_BYTES, CHECKSUM_PROPERTY_BYTES, MAGIC_BLANK, at, crc32, host_bytes, sys_flag};

/// The broker-owned fields of one record.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// Its number in its queue.
    pub offset: u64,
    /// Its byte address in the commit log.
    pub position: u64,
    /// When it was stored, in milliseconds since 1970.
    pub store_timestamp_ms: i64,
    /// The broker it was stored by. An IPv4 address is mapped where the record has an IPv6 field;
    /// an IPv6 address that a record has no room for is stored as 0.0.0.0.
    pub store_host: SocketAddr,
}

/// Fills the broker-owned fields of a record in place, the whole-record checksum last.
///
/// `record` must be exactly one record that [`RecordView::parse`](super::RecordView::parse) accepts
/// and that ends with room for the checksum
/// ([`has_checksum`](super::RecordView::has_checksum)); that is for the caller to check first.
///
/// # Panics
///
/// May panic on bytes that are not such a record.
pub fn seal(record: &mut [u8], placement: &Placement) {
    let flags = u32::from_be_bytes([
        record[at::SYS_FLAG],
        record[at::SYS_FLAG + 1],
        record[at::SYS_FLAG + 2],
        record[at::SYS_FLAG + 3],
    ]);
    let timestamp = at::BORN_HOST + host_bytes(flags & sys_flag::BORN_HOST_V6 != 0);
    let host = timestamp + 8;
    put(record, at::OFFSET, &placement.offset.to_be_bytes());
    put(record, at::POSITION, &placement.position.to_be_bytes());
    put(record, timestamp, &placement.store_timestamp_ms.to_be_bytes());

    let port = u32::from(placement.store_host.port()).to_be_bytes();
    if flags & sys_flag::STORE_HOST_V6 != 0 {
        let ip = match placement.store_host.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        put(record, host, &ip.octets());
        put(record, host + 16, &port);
    } else {
        let ip = match placement.store_host.ip() {
            IpAddr::V4(ip) => ip.octets(),
            IpAddr::V6(_) => [0; 4],
        };
        put(record, host, &ip);
        put(record, host + 4, &port);
    }

    let covered = record.len() - CHECKSUM_PROPERTY_BYTES;
    let digits = checksum_digits(crc32(&record[..covered]));
    let at = record.len() - 1 - digits.len();
    put(record, at, &digits);
}

/// The blank record that says the `remaining` bytes up to the segment's end, its own included, are
/// unused.
pub fn write_blank(remaining: u32) -> [u8; BLANK_BYTES] {
    let mut blank = [0; BLANK_BYTES];
    blank[..4].copy_from_slice(&remaining.to_be_bytes());
    blank[4..].copy_from_slice(&MAGIC_BLANK.to_be_bytes());
    blank
}

/// Ten decimal digits, least significant first.
pub(super) fn checksum_digits(mut crc: u32) -> [u8; 10] {
    let mut digits = [b'0'; 10];
    for digit in &mut digits {
        *digit += (crc % 10) as u8;
        crc /= 10;
    }
    digits
}

fn put(record: &mut [u8], at: usize, bytes: &[u8]) {
    record[at..at + bytes.len()].copy_from_slice(bytes);
}
