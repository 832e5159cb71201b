//! Records of one queue that a producer sends together, checked before they are appended.

use longwire_proto::record::{RecordError, RecordView};
use smallvec::SmallVec;

use crate::error::{RunError, RunFault};

/// Whole records of one topic and queue, one after another, that are fit to be appended.
///
/// They are borrowed mutably: the appender fills the broker-owned fields in place.
#[derive(Debug)]
pub struct RecordRun<'a> {
    pub(crate) bytes: &'a mut [u8],
    /// The size of each record. A run of a few needs no allocation for them.
    pub(crate) sizes: SmallVec<[u32; 16]>,
}

impl<'a> RecordRun<'a> {
    /// Checks that `bytes` are whole records of this topic and queue, with the right body checksum
    /// and room for the whole-record checksum.
    pub fn check(topic: &str, queue: u32, bytes: &'a mut [u8]) -> Result<RecordRun<'a>, RunError> {
        let mut sizes = SmallVec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let checked = check_record(topic, queue, rest);
            let size = checked.map_err(|reason| RunError { index: sizes.len() as u32, reason })?;
            sizes.push(size as u32);
            rest = &rest[size..];
        }
        if sizes.is_empty() {
            return Err(RunError { index: 0, reason: RunFault::Empty });
        }
        Ok(RecordRun { bytes, sizes })
    }

    /// How many records there are.
    pub fn records(&self) -> u32 {
        self.sizes.len() as u32
    }

    /// How many bytes they have.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

fn check_record(topic: &str, queue: u32, bytes: &[u8]) -> Result<usize, RunFault> {
    let record = RecordView::parse(bytes)?;
    if record.topic() != topic {
        return Err(RunFault::Topic);
    }
    if record.queue() != queue {
        return Err(RunFault::Queue(record.queue()));
    }
    record.verify_body()?;
    if !record.has_checksum() {
        return Err(RecordError::NoChecksum.into());
    }
    Ok(record.size())
}
