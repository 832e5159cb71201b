//! Answers off the socket.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use longwire_proto::data::{ResponseHeader, response_header::Response};
use longwire_proto::frame::{PREFIX_BYTES, Prefix};
use longwire_proto::limits::RESPONSE_FRAME_BYTES_MAX;
use prost::Message;
use tokio::net::TcpStream;

use super::{Answer, Progress, Wire, lost};
use crate::{Error, ErrorKind};

/// What is read at once while a frame's length is not known. A whole small frame mostly fits; of a
/// body no more than this is copied.
const READ_AHEAD_BYTES: usize = 8 * 1024;

/// Cuts the byte stream into frames.
pub(super) struct FrameReader {
    stream: Arc<TcpStream>,
    progress: Arc<Progress>,
    /// Read, and not yet part of a frame that was returned.
    ahead: BytesMut,
}

impl FrameReader {
    pub(super) fn new(stream: Arc<TcpStream>, progress: Arc<Progress>) -> FrameReader {
        FrameReader { stream, progress, ahead: BytesMut::new() }
    }

    /// The next frame. Nothing is allocated for it before its length has been checked.
    pub(super) async fn next(&mut self) -> Result<(ResponseHeader, Bytes), Error> {
        let prefix = loop {
            match Prefix::parse(&self.ahead, RESPONSE_FRAME_BYTES_MAX) {
                Ok(Some(prefix)) => break prefix,
                Ok(None) => self.read_ahead(READ_AHEAD_BYTES).await?,
                Err(error) => return Err(protocol(&error.to_string())),
            }
        };
        let head_bytes = PREFIX_BYTES + prefix.header_bytes;
        while self.ahead.len() < head_bytes {
            self.read_ahead(head_bytes.max(READ_AHEAD_BYTES)).await?;
        }
        self.ahead.advance(PREFIX_BYTES);
        let header = ResponseHeader::decode(self.ahead.split_to(prefix.header_bytes))
            .map_err(|error| protocol(&format!("the header is not valid: {error}")))?;
        let body = self.body(prefix.body_bytes).await?;
        Ok((header, body))
    }

    /// A body never shares the memory read ahead: a small one would hold on to all of it.
    async fn body(&mut self, body_bytes: usize) -> Result<Bytes, Error> {
        let mut body = BytesMut::with_capacity(body_bytes);
        let here = body_bytes.min(self.ahead.len());
        body.extend_from_slice(&self.ahead[..here]);
        self.ahead.advance(here);
        while body.len() < body_bytes {
            let missing = body_bytes - body.len();
            read(&self.stream, &self.progress, &mut (&mut body).limit(missing)).await?;
        }
        Ok(body.freeze())
    }

    async fn read_ahead(&mut self, bytes: usize) -> Result<(), Error> {
        self.ahead.reserve(bytes);
        read(&self.stream, &self.progress, &mut self.ahead).await
    }
}

/// Reads at least one byte.
async fn read(
    stream: &TcpStream,
    progress: &Progress,
    buffer: &mut impl BufMut,
) -> Result<(), Error> {
    loop {
        stream.readable().await.map_err(|error| lost(&error))?;
        match stream.try_read_buf(buffer) {
            Ok(0) => {
                let message = "the broker closed the data connection";
                return Err(Error::new(ErrorKind::ConnectionLost, message));
            }
            Ok(_) => {
                progress.note();
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(&error)),
        }
    }
}

fn protocol(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("the broker sent something that is no frame: {what}"))
}

/// The reader task: ends with the connection.
pub(super) async fn run(mut reader: FrameReader, wire: Arc<Wire>) {
    let why = loop {
        let (header, body) = match reader.next().await {
            Ok(frame) => frame,
            Err(error) => break error,
        };
        let id = header.correlation_id;
        let answer = match header.response {
            Some(Response::Error(error)) if id == 0 => {
                let message = format!("the broker ended the data connection: {}", error.message);
                break Error::refused(error.code, message);
            }
            Some(Response::Error(error)) => Err(Error::refused(error.code, error.message)),
            Some(response) => Ok(Answer { response, body }),
            None => Err(protocol("an answer without content")),
        };
        match wire.answered(id) {
            Some(reply) => reply.complete(answer),
            None => break protocol(&format!("an answer to request {id}, which was not asked")),
        }
    };
    wire.fail(why);
}
