//! What a message of an end-to-end run says of itself, at the start of its body.

/// Bytes of a stamp.
pub(super) const STAMP_BYTES: usize = 32;

/// Who sent a message, as which, and when it was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Tells messages of this run from those of others in the same topic.
    pub(super) run: u64,
    /// Counts the messages of one client in one queue, from 0.
    pub(super) sequence: u64,
    /// When it was to be sent, in nanoseconds since the run began; below 2^63.
    pub(super) due_ns: u64,
    pub(super) client: u32,
    /// False in the warm-up.
    pub(super) measured: bool,
}

impl Stamp {
    pub(super) fn encode(&self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&self.run.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.due_ns.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.client.to_be_bytes());
        bytes[28..].copy_from_slice(&u32::from(self.measured).to_be_bytes());
        bytes
    }

    /// `None` for what is no stamp.
    pub(super) fn decode(body: &[u8]) -> Option<Stamp> {
        let (run, rest) = body.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (due_ns, rest) = rest.split_first_chunk()?;
        let (client, rest) = rest.split_first_chunk()?;
        let (measured, _) = rest.split_first_chunk()?;
        Some(Stamp {
            run: u64::from_be_bytes(*run),
            sequence: u64::from_be_bytes(*sequence),
            due_ns: u64::from_be_bytes(*due_ns),
            client: u32::from_be_bytes(*client),
            measured: u32::from_be_bytes(*measured) == 1,
        })
    }
}
