//! Records of one queue that a producer sends together, checked before they are appended.

use longwire_proto::record::{MAGIC_V1, RecordError, RecordView};
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
    if record.magic() != MAGIC_V1 {
        return Err(RunFault::Version);
    }
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

#[cfg(test)]
mod tests {
    use longwire_proto::ErrorCode;
    use longwire_proto::record::{MAGIC_V2, RecordDraft};

    use super::*;

    #[test]
    fn a_record_of_another_version_is_refused_however_sound_it_is() {
        let mut bytes = Vec::new();
        RecordDraft { topic: "t", ..RecordDraft::default() }.encode(&mut bytes).unwrap();
        assert!(RecordRun::check("t", 0, &mut bytes).is_ok());
        // The topic's length gets a second byte.
        let topic_at = RecordView::parse(&bytes).unwrap().body_range().end;
        bytes.insert(topic_at, 0);
        let size = bytes.len() as u32;
        bytes[..4].copy_from_slice(&size.to_be_bytes());
        bytes[4..8].copy_from_slice(&MAGIC_V2.to_be_bytes());
        assert_eq!(RecordView::parse(&bytes).unwrap().topic(), "t");
        let error = RecordRun::check("t", 0, &mut bytes).unwrap_err();
        assert_eq!(error.reason, RunFault::Version);
        assert_eq!(error.code(), ErrorCode::InvalidRecord);
    }
}
