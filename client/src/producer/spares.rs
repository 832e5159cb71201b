//! Buffers of batches that are decided, kept for the next ones.

use bytes::Bytes;
use parking_lot::Mutex;

/// Larger buffers are left to the allocator, which is good at them.
const BUFFER_BYTES_MAX: usize = 32 * 1024;
/// What is kept in all.
const SPARE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Where many queues have a few records each, a batch is some KiB: what an allocator takes longest
/// for, and all the more where one thread fills it and another one frees it.
#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
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

    /// Keeps the buffer of bytes that nobody else needs any more.
    pub(super) fn put(&self, bytes: Bytes) {
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
        spares.put(bytes);
        spares.put(other);
        let again = spares.take(50);
        assert_eq!((again.as_ptr(), again.len()), (at, 0));
        assert_eq!(spares.0.lock().buffers.len(), 0, "only one of the two was kept");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let spares = Spares::default();
        spares.put(Bytes::from(vec![0; BUFFER_BYTES_MAX + 1]));
        assert_eq!(spares.0.lock().bytes, 0);
        for _ in 0..SPARE_BYTES_MAX / 1000 {
            spares.put(Bytes::from(vec![0; 2000]));
        }
        assert!(spares.0.lock().bytes < SPARE_BYTES_MAX + BUFFER_BYTES_MAX);
    }
}
