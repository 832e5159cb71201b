//! The data plane's frames: everything that crosses a data connection is one of these.
//!
//! ```text
//!  u32 length of what follows | u16 header length | header (protobuf) | body: records
//! ```
//!
//! Big-endian. The header is a [`RequestHeader`](crate::data::RequestHeader) or
//! [`ResponseHeader`](crate::data::ResponseHeader); the body is zero or more records, byte for byte
//! as the log stores them.
//!
//! ```
//! use bytes::BytesMut;
//! use longwire_proto::data::{FetchRequest, RequestHeader, request_header::Request};
//! use longwire_proto::frame::{self, Prefix};
//! use longwire_proto::limits::REQUEST_FRAME_BYTES_MAX;
//!
//! let request = Some(Request::Fetch(FetchRequest::default()));
//! let head = frame::head(&RequestHeader { correlation_id: 7, request }, 0)?;
//!
//! let mut received = BytesMut::from(&head[..]);
//! if let Some(prefix) = Prefix::parse(&received, REQUEST_FRAME_BYTES_MAX)?
//!     && let Some(frame) = frame::take::<RequestHeader>(&mut received, prefix)?
//! {
//!     assert_eq!(frame.header.correlation_id, 7);
//! }
//! # Ok::<(), frame::FrameError>(())
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::limits::FRAME_HEADER_BYTES_MAX;

/// The length word and the header length before every header.
pub const PREFIX_BYTES: usize = 6;

/// Why bytes are not a frame. The connection cannot go on: where the next frame begins is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame is longer than the receiver accepts.
    #[error("a frame of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// The length the frame gives itself.
        bytes: usize,
        /// The most the receiver accepts.
        max: usize,
    },
    /// The header does not fit into the frame.
    #[error("a header of {header} bytes does not fit a frame of {frame}, or its limit of 65535")]
    HeaderLength {
        /// The length the frame gives its header.
        header: usize,
        /// The length the frame gives itself.
        frame: usize,
    },
    /// The header is not the protobuf message it should be.
    #[error("the header is not valid: {0}")]
    Header(String),
}

/// The lengths at the start of a frame, checked against each other and a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Bytes of the protobuf header.
    pub header_bytes: usize,
    /// Bytes of the body.
    pub body_bytes: usize,
}

impl Prefix {
    /// Reads the prefix, or `None` if fewer than [`PREFIX_BYTES`] are there.
    ///
    /// A length over `frame_bytes_max` is refused from the first four bytes alone.
    pub fn parse(bytes: &[u8], frame_bytes_max: usize) -> Result<Option<Prefix>, FrameError> {
        let Some(length) = bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let frame = u32::from_be_bytes(*length) as usize;
        if frame > frame_bytes_max {
            return Err(FrameError::TooLarge { bytes: frame, max: frame_bytes_max });
        }
        if frame < 2 {
            return Err(FrameError::HeaderLength { header: 0, frame });
        }
        let Some(&[_, _, _, _, high, low]) = bytes.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let header = usize::from(u16::from_be_bytes([high, low]));
        if header + 2 > frame {
            return Err(FrameError::HeaderLength { header, frame });
        }
        Ok(Some(Prefix { header_bytes: header, body_bytes: frame - 2 - header }))
    }

    /// The whole frame with its prefix, in bytes.
    pub fn frame_bytes(&self) -> usize {
        PREFIX_BYTES + self.header_bytes + self.body_bytes
    }
}

/// A frame taken off a connection.
#[derive(Debug)]
pub struct Frame<H> {
    /// The decoded header.
    pub header: H,
    /// The records behind it; owned, so that they can be sealed in place.
    pub body: BytesMut,
}

/// Takes the first frame out of `buffer` if all of it is there.
///
/// `prefix` must have been parsed from the start of this buffer.
pub fn take<H: Message + Default>(
    buffer: &mut BytesMut,
    prefix: Prefix,
) -> Result<Option<Frame<H>>, FrameError> {
    if buffer.len() < prefix.frame_bytes() {
        return Ok(None);
    }
    let body_from = PREFIX_BYTES + prefix.header_bytes;
    let header = H::decode(&buffer[PREFIX_BYTES..body_from]);
    buffer.advance(body_from);
    // Even an empty part would make the buffer a shared one.
    let body = match prefix.body_bytes {
        0 => BytesMut::new(),
        bytes => buffer.split_to(bytes),
    };
    let header = header.map_err(|error| FrameError::Header(error.to_string()))?;
    Ok(Some(Frame { header, body }))
}

/// Prefix and header of a frame whose body of `body_bytes` is sent separately.
///
/// Fails where the header is longer than [`FRAME_HEADER_BYTES_MAX`] (the limits on runs and queues
/// do not exclude that for topics with the longest names), or the frame longer than its length word
/// can say.
pub fn head(header: &impl Message, body_bytes: usize) -> Result<Bytes, FrameError> {
    let header_bytes = header.encoded_len();
    let frame = body_bytes.saturating_add(2 + header_bytes);
    if header_bytes > FRAME_HEADER_BYTES_MAX {
        return Err(FrameError::HeaderLength { header: header_bytes, frame });
    }
    let frame_word = u32::try_from(frame)
        .map_err(|_| FrameError::TooLarge { bytes: frame, max: u32::MAX as usize })?;
    let mut head = Vec::with_capacity(PREFIX_BYTES + header_bytes);
    head.put_u32(frame_word);
    head.put_u16(header_bytes as u16);
    header.encode_raw(&mut head);
    Ok(head.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{HelloRequest, RequestHeader, request_header::Request};

    fn hello() -> RequestHeader {
        let request =
            HelloRequest { protocol_version: 1, client_id: "c".into(), session: Vec::new() };
        RequestHeader { correlation_id: 9, request: Some(Request::Hello(request)) }
    }

    #[test]
    fn a_frame_is_taken_only_when_whole_and_leaves_what_follows() {
        let mut bytes = BytesMut::from(&head(&hello(), 3).unwrap()[..]);
        bytes.extend_from_slice(b"abcNEXT");
        let prefix = Prefix::parse(&bytes, 1 << 20).unwrap().unwrap();
        let mut part = BytesMut::from(&bytes[..prefix.frame_bytes() - 1]);
        assert!(take::<RequestHeader>(&mut part, prefix).unwrap().is_none());

        let frame = take::<RequestHeader>(&mut bytes, prefix).unwrap().unwrap();
        assert_eq!(frame.header, hello());
        assert_eq!((&frame.body[..], &bytes[..]), (&b"abc"[..], &b"NEXT"[..]));
    }

    #[test]
    fn lengths_are_refused_before_anything_is_buffered() {
        let too_large = FrameError::TooLarge { bytes: 0x7fff_ffff, max: 100 };
        assert_eq!(Prefix::parse(&[0x7f, 0xff, 0xff, 0xff], 100), Err(too_large));
        assert!(Prefix::parse(&[0, 0, 0, 1], 100).is_err());
        let header_over_frame = FrameError::HeaderLength { header: 9, frame: 10 };
        assert_eq!(Prefix::parse(&[0, 0, 0, 10, 0, 9], 100), Err(header_over_frame));
        assert_eq!(Prefix::parse(&[0, 0, 0], 100), Ok(None));
        assert_eq!(Prefix::parse(&[0, 0, 0, 10, 0], 100), Ok(None));
    }
}
