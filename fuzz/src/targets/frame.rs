//! Frames of the data plane, as they come off a socket.

use bytes::BytesMut;
use longwire_proto::data::{RequestHeader, ResponseHeader};
use longwire_proto::frame::{self, PREFIX_BYTES, Prefix};
use longwire_proto::limits::{REQUEST_FRAME_BYTES_MAX, RESPONSE_FRAME_BYTES_MAX};
use prost::Message;

pub(super) fn run(data: &[u8]) {
    take_all::<RequestHeader>(data, REQUEST_FRAME_BYTES_MAX);
    take_all::<ResponseHeader>(data, RESPONSE_FRAME_BYTES_MAX);
}

/// Takes frames until there are no more, or one that is none.
fn take_all<H: Message + Default + PartialEq + Clone>(data: &[u8], frame_bytes_max: usize) {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(prefix)) = Prefix::parse(&buffer, frame_bytes_max) {
        assert!(prefix.frame_bytes() <= 4 + frame_bytes_max);
        for cut in 0..buffer.len().min(PREFIX_BYTES) {
            // Less of it is never refused, and never taken for a whole prefix.
            assert_eq!(Prefix::parse(&buffer[..cut], frame_bytes_max), Ok(None));
        }
        let before = buffer.len();
        let Ok(Some(frame)) = frame::take::<H>(&mut buffer, prefix) else {
            return;
        };
        assert_eq!(before - buffer.len(), prefix.frame_bytes());
        assert_eq!(frame.body.len(), prefix.body_bytes);
        // An encoded header can be longer than what it was decoded from, never of another meaning.
        if let Ok(head) = frame::head(&frame.header, frame.body.len()) {
            let mut again = BytesMut::from(&head[..]);
            again.extend_from_slice(&frame.body);
            let max = usize::MAX;
            let prefix = Prefix::parse(&again, max).expect("sound").expect("whole");
            let again = frame::take::<H>(&mut again, prefix).expect("sound").expect("whole");
            assert!(again.header == frame.header && again.body == frame.body);
        }
    }
}
