//! Records of one queue as they came, and the checks they pass before they are handed out.

use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use longwire_proto::record::{RecordView, sys_flag};

use super::filter::TagFilter;
use super::received::Received;
use crate::compression::decompress;
use crate::message::TopicQueue;
use crate::{Error, ErrorKind};

/// What a chunk's records must belong to.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) name: TopicQueue,
    pub(super) filter: Arc<TagFilter>,
    /// `None` takes whichever topic has the name.
    pub(super) created_position: Option<CreatedPosition>,
}

/// Where in the log a topic was created. Whether it is known takes no room of its own: a consumer goes
/// through the sources of thousands of queues for every few messages, and each then fits a cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CreatedPosition(NonZeroU64);

impl CreatedPosition {
    /// `None` for the last position there could be, where no record fits.
    pub(super) fn new(position: u64) -> Option<CreatedPosition> {
        position.checked_add(1).and_then(NonZeroU64::new).map(CreatedPosition)
    }

    pub(super) fn get(self) -> u64 {
        self.0.get() - 1
    }
}

const _: () = assert!(size_of::<Source>() <= 40);

/// Fetched records that have not been handed out.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Bytes,
    /// Where in `bytes` the next record begins.
    at: usize,
    /// No record may have a lower offset.
    next: u64,
    /// The offset that follows, whether or not its record has passed the broker's filter.
    end: u64,
}

impl Chunk {
    pub(super) fn new(bytes: Bytes, next: u64, end: u64) -> Chunk {
        Chunk { bytes, at: 0, next, end }
    }

    /// Bytes not yet read.
    pub(super) fn bytes_left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Where reading stands: the offset after the last record read, or after the chunk.
    pub(super) fn offset(&self) -> u64 {
        if self.bytes_left() == 0 { self.end } else { self.next }
    }

    /// Makes the chunk end at a later offset: records in between were left out by the filter.
    pub(super) fn extend_to(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// The next message that passes the filter, or what is wrong with its record. `None` at the end.
    ///
    /// After an error the chunk still stands before the bad record.
    pub(super) fn next(&mut self, source: &Source) -> Option<Result<Received, Error>> {
        loop {
            let rest = &self.bytes[self.at..];
            if rest.is_empty() {
                self.next = self.end;
                return None;
            }
            let view = match RecordView::parse(rest) {
                Ok(view) => view,
                Err(error) => return Some(Err(bad(source, self.next, &error))),
            };
            if let Err((offset, why)) = self.check(&view, source) {
                return Some(Err(bad(source, offset, &why)));
            }
            let wanted = source.filter.is_all() || source.filter.matches(view.tag());
            let unfolded = match view.sys_flag() & sys_flag::COMPRESSED {
                flag if flag == 0 || !wanted => None,
                _ => match decompress(view.body(), view.sys_flag()) {
                    Ok(body) => Some(body),
                    Err(error) => return Some(Err(bad(source, view.offset(), &error))),
                },
            };
            let received = wanted.then(|| {
                let record = self.bytes.slice(self.at..self.at + view.size());
                Received::new(source.name.topic.clone(), record, &view, unfolded)
            });
            self.next = view.offset() + 1;
            self.at += view.size();
            if let Some(received) = received {
                return Some(Ok(received));
            }
        }
    }

    /// The offset to name and what is wrong, if the record is damaged or not the one asked for.
    fn check(&self, view: &RecordView<'_>, source: &Source) -> Result<(), (u64, String)> {
        // Of a damaged record not even the offset can be believed.
        view.verify_checksum().map_err(|error| (self.next, error.to_string()))?;
        let here = (view.topic(), view.queue());
        if here != (&*source.name.topic, source.name.queue) {
            return Err((self.next, format!("it belongs to {}/{}", here.0, here.1)));
        }
        if !(self.next..self.end).contains(&view.offset()) {
            let expected = format!("expected {} up to {}", self.next, self.end);
            return Err((self.next, format!("it has offset {}, {expected}", view.offset())));
        }
        Ok(())
    }
}

fn bad(source: &Source, offset: u64, why: &dyn std::fmt::Display) -> Error {
    let name = &source.name;
    let message = format!(
        "the record at offset {offset} of queue {name} is bad: {why}; \
         the queue stands still until the consumer seeks past it"
    );
    Error::new(ErrorKind::CorruptRecord, message).with_record(name.clone(), offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::Compression;
    use longwire_proto::record::{Placement, RecordDraft, seal};

    fn record(queue: u32, offset: u64, tag: &str, body: &[u8], sys_flag: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let draft =
            RecordDraft { topic: "t", queue, tag, body, sys_flag, ..RecordDraft::default() };
        draft.encode(&mut bytes).unwrap();
        let store_host = "127.0.0.1:7650".parse().unwrap();
        seal(
            &mut bytes,
            &Placement { offset, position: 1000 + offset, store_timestamp_ms: 5, store_host },
        );
        bytes
    }

    fn source(filter: TagFilter) -> Source {
        Source { name: TopicQueue::new("t", 1), filter: Arc::new(filter), created_position: None }
    }

    fn offsets(chunk: &mut Chunk, source: &Source) -> Vec<Result<u64, String>> {
        let next = || chunk.next(source).map(|r| r.map(|m| m.offset()).map_err(|e| e.to_string()));
        let mut next = next;
        std::iter::from_fn(&mut next).take(10).collect()
    }

    #[test]
    fn whole_records_are_handed_out_with_their_fields() {
        let bytes = [record(1, 5, "a", b"one", 0), record(1, 6, "", b"two", 0)].concat();
        let mut chunk = Chunk::new(bytes.into(), 5, 7);
        let source = source(TagFilter::all());
        let one = chunk.next(&source).unwrap().unwrap();
        assert_eq!((one.offset(), one.position(), one.tag()), (5, 1005, Some("a")));
        assert_eq!((&one.body()[..], one.store_timestamp_ms()), (&b"one"[..], 5));
        assert_eq!(chunk.offset(), 6);
        assert_eq!(chunk.next(&source).unwrap().unwrap().body(), "two");
        assert!(chunk.next(&source).is_none());
        assert_eq!((chunk.offset(), chunk.bytes_left()), (7, 0));
    }

    #[test]
    fn tags_are_compared_and_what_is_left_out_still_counts() {
        let records = [(5, "Aa"), (6, "BB"), (9, "Aa"), (10, "BB")];
        let bytes: Vec<_> =
            records.iter().flat_map(|(o, tag)| record(1, *o, tag, b"", 0)).collect();
        let mut chunk = Chunk::new(bytes.into(), 5, 20);
        assert_eq!(offsets(&mut chunk, &source(TagFilter::any(["Aa"]))), [Ok(5), Ok(9)]);
        assert_eq!(chunk.offset(), 20);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_reported_with_its_offset() {
        let source = source(TagFilter::all());
        let good = record(1, 6, "a", b"body", 0);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let mut chunk = Chunk::new([record(1, 5, "", b"", 0), bad].concat().into(), 5, 7);
            assert_eq!(chunk.next(&source).unwrap().unwrap().offset(), 5);
            let error = chunk.next(&source).unwrap().unwrap_err();
            let found = error.record().unwrap();
            assert_eq!((error.kind(), found.offset), (ErrorKind::CorruptRecord, 6), "byte {at}");
            assert_eq!(found.queue, source.name);
            assert_eq!(chunk.offset(), 6, "stands before the bad record");
        }
    }

    #[test]
    fn a_sound_record_in_the_wrong_place_is_refused() {
        for (queue, offset) in [(2, 5), (1, 4), (1, 6)] {
            let mut chunk = Chunk::new(record(queue, offset, "", b"", 0).into(), 5, 6);
            let error = chunk.next(&source(TagFilter::all())).unwrap().unwrap_err();
            assert_eq!(error.record().unwrap().offset, 5, "queue {queue} offset {offset}");
        }
    }

    #[test]
    fn compressed_bodies_are_unfolded() {
        let body = b"abc".repeat(1000);
        let (small, flags) = Compression::Zstd.compress(&body).unwrap();
        let mut chunk = Chunk::new(record(1, 5, "", &small, flags).into(), 5, 6);
        let source = source(TagFilter::all());
        assert_eq!(chunk.next(&source).unwrap().unwrap().body(), body);
        let broken = record(1, 5, "", &small[..20], flags);
        let error = Chunk::new(broken.into(), 5, 6).next(&source).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptRecord);
    }
}
