//! Where records are encoded while thousands of queues each have a few: one behind another, to
//! whichever queue they go.
//!
//! What is written next then lies next to what was written last. In as many buffers as there are
//! queues every record would wait for the cache and the TLB, which know the ends of none of them. It
//! takes more slices to send, so a few queues had better have a buffer each.

use std::collections::VecDeque;

use bytes::BytesMut;
use longwire_proto::record::{EncodeError, RecordDraft};
use parking_lot::Mutex;

/// What is allocated at once, and free again when the last record in it is decided.
const CHUNK_BYTES: usize = 64 * 1024;
/// Larger records have an allocation of their own.
const SHARED_BYTES_MAX: usize = CHUNK_BYTES / 8;
/// How many used chunks are looked at for a free one. They mostly become free in their order.
const LOOKS_MAX: usize = 4;

#[derive(Debug)]
pub(super) struct Arena {
    chunks: Mutex<Chunks>,
}

#[derive(Debug)]
struct Chunks {
    /// The free end of the chunk that is being filled.
    end: BytesMut,
    /// Chunks without room, each by an empty part of it.
    full: VecDeque<BytesMut>,
    full_max: usize,
}

impl Arena {
    /// An arena for that many bytes of records. Its chunks take up to twice that: one record that has to
    /// wait keeps its whole chunk. A record for which there is no chunk has an allocation of its own.
    pub(super) fn new(bytes: usize) -> Arena {
        let full_max = 2 * bytes / CHUNK_BYTES + 1;
        let chunks = Chunks { end: BytesMut::new(), full: VecDeque::new(), full_max };
        Arena { chunks: Mutex::new(chunks) }
    }

    /// Encodes a record of at most `bytes_max`.
    pub(super) fn encode(
        &self,
        draft: &RecordDraft<'_>,
        bytes_max: usize,
    ) -> Result<BytesMut, EncodeError> {
        if bytes_max <= SHARED_BYTES_MAX {
            let mut chunks = self.chunks.lock();
            if chunks.make_room(bytes_max) {
                draft.encode(&mut chunks.end)?;
                return Ok(chunks.end.split());
            }
        }
        let mut own = BytesMut::with_capacity(bytes_max);
        draft.encode(&mut own)?;
        Ok(own)
    }

    /// Keeps nothing for records to come.
    pub(super) fn release(&self) {
        let mut chunks = self.chunks.lock();
        chunks.end = BytesMut::new();
        chunks.full = VecDeque::new();
    }
}

impl Chunks {
    /// Goes on to another chunk if the present one has no room; `false` if there is none.
    fn make_room(&mut self, bytes: usize) -> bool {
        if self.end.capacity() >= bytes {
            return true;
        }
        let next = match self.reclaim() {
            Some(free) => free,
            None if self.full.len() < self.full_max => BytesMut::with_capacity(CHUNK_BYTES),
            None => return false,
        };
        let full = std::mem::replace(&mut self.end, next);
        // At first there is no chunk.
        if full.capacity() > 0 {
            self.full.push_back(full);
        }
        true
    }

    fn reclaim(&mut self) -> Option<BytesMut> {
        for _ in 0..LOOKS_MAX.min(self.full.len()) {
            let mut chunk = self.full.pop_front()?;
            if chunk.try_reclaim(CHUNK_BYTES) {
                return Some(chunk);
            }
            self.full.push_back(chunk);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: [u8; 1000] = [7; 1000];

    fn encode(arena: &Arena, body: &[u8]) -> BytesMut {
        let draft = RecordDraft { topic: "t", body, ..RecordDraft::default() };
        arena.encode(&draft, body.len() + 200).unwrap()
    }

    #[test]
    fn records_lie_side_by_side_and_their_memory_is_used_again() {
        let arena = Arena::new(1 << 20);
        let first = encode(&arena, &BODY);
        let second = encode(&arena, &BODY);
        assert_eq!(first.as_ptr_range().end, second.as_ptr());
        let at = first.as_ptr();
        drop((first, second));
        let again = (0..200).any(|_| encode(&arena, &BODY).as_ptr() == at);
        assert!(again, "200 records are more than two chunks hold");
        assert_eq!(arena.chunks.lock().full.len(), 1);
    }

    #[test]
    fn one_record_that_waits_keeps_a_chunk_and_no_more_than_that() {
        let arena = Arena::new(1 << 20);
        let waits = encode(&arena, &BODY);
        let bytes = waits.to_vec();
        for _ in 0..1000 {
            encode(&arena, &[9; 1000]);
        }
        assert_eq!(waits, bytes);
        assert_eq!(arena.chunks.lock().full.len(), 2);
    }

    #[test]
    fn chunks_that_are_all_kept_are_bounded() {
        let arena = Arena::new(1 << 20);
        let kept: Vec<_> = (0..4000).map(|_| encode(&arena, &BODY)).collect();
        assert_eq!(arena.chunks.lock().full.len(), (2 << 20) / CHUNK_BYTES + 1);
        assert!(kept.iter().all(|record| record[..] == kept[0][..]));
        drop(kept);
        let [first, second] = [encode(&arena, &BODY), encode(&arena, &BODY)];
        assert_eq!(first.as_ptr_range().end, second.as_ptr(), "chunks are there again");
    }

    #[test]
    fn what_is_released_is_freed_with_its_last_record() {
        let arena = Arena::new(1 << 20);
        let kept: Vec<_> = (0..200).map(|_| encode(&arena, &BODY)).collect();
        arena.release();
        assert_eq!(arena.chunks.lock().full.len(), 0);
        encode(&arena, &[9; 1000]);
        assert!(kept.iter().all(|record| record[..] == kept[0][..]));
    }

    #[test]
    fn a_large_record_and_one_that_cannot_be_encoded_take_no_room() {
        let arena = Arena::new(1 << 20);
        let room = || arena.chunks.lock().end.capacity();
        encode(&arena, &[1; CHUNK_BYTES]);
        assert_eq!(room(), 0, "no chunk was begun");
        let draft = RecordDraft { topic: "", ..RecordDraft::default() };
        assert!(arena.encode(&draft, 200).is_err());
        assert_eq!(room(), CHUNK_BYTES);
    }
}
