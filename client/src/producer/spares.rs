//! What batches need allocated: kept for the next ones, or shared with them.

use bytes::Bytes;
use parking_lot::Mutex;

use super::batch::{Batch, Slices, Together};

/// Larger buffers are left to the allocator, which is good at them.
const BUFFER_BYTES_MAX: usize = 32 * 1024;
/// What buffers are kept in all.
const SPARE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How many lists of slices are kept, and how long each may be.
const SPARE_LISTS_MAX: usize = 16 * 1024;
const SLICES_MAX: usize = 32;

/// Where many queues have a few records each, a batch is some KiB: what an allocator takes longest
/// for, and all the more where one thread fills it and another one frees it.
#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    lists: Vec<Slices>,
    together: Together,
}

impl Spares {
    /// An empty buffer with room for so many bytes.
    pub(super) fn take(&self, mut room: usize) -> Vec<u8> {
        let mut buffer = Vec::new();
        if room <= BUFFER_BYTES_MAX {
            let mut kept = self.0.lock();
            buffer = kept.buffers.pop().unwrap_or_default();
            kept.bytes -= buffer.capacity();
            // The next batch of a queue is often a little larger than the last.
            room = room.next_power_of_two();
        }
        buffer.reserve(room);
        buffer
    }

    /// Begins a batch that is held together with others.
    pub(super) fn begin_batch(&self) -> Batch {
        self.0.lock().together.begin()
    }

    /// An empty list with room for so many slices.
    pub(super) fn take_list(&self, room: usize) -> Slices {
        let mut list = Slices::new();
        if room > list.inline_size() {
            list = self.0.lock().lists.pop().unwrap_or_default();
            list.reserve(room.next_power_of_two());
        }
        list
    }

    /// Keeps lists of slices, which are empty.
    pub(super) fn put_lists(&self, lists: impl IntoIterator<Item = Slices>) {
        let mut kept = self.0.lock();
        for list in lists {
            let kept = &mut kept.lists;
            if list.spilled() && list.capacity() <= SLICES_MAX && kept.len() < SPARE_LISTS_MAX {
                kept.push(list);
            }
        }
    }

    /// Keeps the buffers of slices that nobody else needs any more.
    pub(super) fn put(&self, slices: impl Iterator<Item = Bytes>) {
        slices.for_each(|slice| self.put_buffer(slice));
    }

    fn put_buffer(&self, bytes: Bytes) {
        // By way of `BytesMut`, which does not copy the bytes to where they are.
        let Ok(mut bytes) = bytes.try_into_mut() else {
            return;
        };
        bytes.clear();
        let buffer = Vec::from(bytes);
        let mut kept = self.0.lock();
        if buffer.capacity() <= BUFFER_BYTES_MAX && kept.bytes < SPARE_BYTES_MAX {
            kept.bytes += buffer.capacity();
            kept.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_buffer_comes_back_unless_it_is_still_in_use() {
        let spares = Spares::default();
        let mut buffer = spares.take(100);
        buffer.extend_from_slice(&[1; 100]);
        let at = buffer.as_ptr();
        let bytes = Bytes::from(buffer);
        let other = bytes.clone();
        spares.put_buffer(bytes);
        spares.put_buffer(other);
        let again = spares.take(50);
        assert_eq!((again.as_ptr(), again.len()), (at, 0));
        assert_eq!(spares.0.lock().buffers.len(), 0, "only one of the two was kept");
    }

    #[test]
    fn a_list_of_slices_comes_back_empty_and_with_room() {
        let spares = Spares::default();
        let mut list = spares.take_list(5);
        list.extend(std::iter::repeat_n(Bytes::from_static(b"a record"), 5));
        let at = list.as_ptr();
        list.clear();
        spares.put_lists([list]);
        let again = spares.take_list(8);
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (at, 0, 8));
        assert!(!spares.take_list(1).spilled(), "one slice needs none");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let spares = Spares::default();
        spares.put_buffer(Bytes::from(vec![0; BUFFER_BYTES_MAX + 1]));
        assert_eq!(spares.0.lock().bytes, 0);
        for _ in 0..SPARE_BYTES_MAX / 1000 {
            spares.put_buffer(Bytes::from(vec![0; 2000]));
        }
        assert!(spares.0.lock().bytes < SPARE_BYTES_MAX + BUFFER_BYTES_MAX);
        spares.put_lists((0..=SPARE_LISTS_MAX).map(|_| Slices::with_capacity(2)));
        spares.put_lists([Slices::with_capacity(SLICES_MAX + 1)]);
        let lists = &spares.0.lock().lists;
        assert_eq!(lists.len(), SPARE_LISTS_MAX);
        assert!(lists.iter().all(|list| list.is_empty() && list.capacity() <= SLICES_MAX));
    }
}
