//! The one error of this crate's surface.

use std::fmt;
use std::sync::Arc;

use longwire_proto::ErrorCode;

use crate::message::TopicQueue;

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument cannot be used; nothing was sent.
    InvalidArgument,
    /// The broker cannot be reached.
    Unreachable,
    /// The connection ended before the answer came.
    ConnectionLost,
    /// The answer, or room to send, did not come in time.
    Timeout,
    /// The broker refused; [`Error::code`] says why.
    Refused,
    /// A record failed its checks; [`Error::record`] says which.
    CorruptRecord,
    /// The peer did not follow the protocol.
    Protocol,
    /// The producer or consumer has been closed.
    Closed,
}

/// A record that an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordRef {
    /// The queue it is in.
    pub queue: TopicQueue,
    /// Its offset in the queue.
    pub offset: u64,
}

/// Why an operation failed, on what, and what to do about it.
///
/// Cheap to clone: all messages of a failed batch share one.
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
}

#[derive(Debug, Clone)]
struct Inner {
    kind: ErrorKind,
    code: Option<ErrorCode>,
    message: String,
    retriable: bool,
    outcome_unknown: bool,
    record: Option<RecordRef>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        let retriable =
            matches!(kind, ErrorKind::Unreachable | ErrorKind::ConnectionLost | ErrorKind::Timeout);
        let message = message.into();
        Error {
            inner: Arc::new(Inner {
                kind,
                code: None,
                message,
                retriable,
                outcome_unknown: false,
                record: None,
            }),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidArgument, message)
    }

    /// The broker answered `number`; `message` is its explanation.
    pub(crate) fn refused(number: u32, message: impl Into<String>) -> Error {
        let code = ErrorCode::from_number(number);
        let message = message.into();
        let message = match code {
            Some(code) => format!("{message} ({code})"),
            None => format!("{message} (error {number}, which this client does not know)"),
        };
        let mut error = Error::new(ErrorKind::Refused, message);
        error.change(|inner| {
            inner.code = code;
            inner.retriable = code.is_some_and(ErrorCode::is_retriable);
            inner.outcome_unknown = code == Some(ErrorCode::Internal);
        });
        error
    }

    /// A gRPC call `what` failed with `status`.
    pub(crate) fn from_status(what: &str, status: &tonic::Status) -> Error {
        if let Some(code) = longwire_proto::error_code_of(status) {
            let error = Error::refused(code.number(), format!("{what}: {}", status.message()));
            return match code {
                // The change may have been made, and not yet be durable.
                ErrorCode::StorePoisoned | ErrorCode::ShuttingDown => error.with_unknown_outcome(),
                _ => error,
            };
        }
        let kind = match status.code() {
            // There was no connection to make the call over.
            tonic::Code::Unavailable if is_caused_by::<tonic::ConnectError>(status) => {
                ErrorKind::Unreachable
            }
            tonic::Code::DeadlineExceeded => ErrorKind::Timeout,
            // What the deadline of this side looks like.
            tonic::Code::Cancelled if is_caused_by::<tonic::TimeoutExpired>(status) => {
                ErrorKind::Timeout
            }
            // What HTTP/2 makes of a connection that ended, or whose keep-alive was not answered.
            tonic::Code::Unavailable
            | tonic::Code::Cancelled
            | tonic::Code::Unknown
            | tonic::Code::Internal => ErrorKind::ConnectionLost,
            _ => ErrorKind::Refused,
        };
        let why = match std::error::Error::source(status) {
            Some(source) => innermost(source),
            None => status.message().to_owned(),
        };
        let mut error = Error::new(kind, format!("{what}: {why} ({:?})", status.code()));
        // A broker that could not be reached has done nothing; one that fell silent may have.
        let unknown = matches!(kind, ErrorKind::Timeout | ErrorKind::ConnectionLost);
        error.change(|inner| inner.outcome_unknown = unknown);
        error
    }

    pub(crate) fn with_unknown_outcome(mut self) -> Error {
        self.change(|inner| inner.outcome_unknown = true);
        self
    }

    /// The same error for who only asked, and does not mind what else may have come of that.
    pub(crate) fn without_effect(mut self) -> Error {
        self.change(|inner| inner.outcome_unknown = false);
        self
    }

    /// The same error for a request that never left: whatever ended the connection, another one may
    /// take it.
    pub(crate) fn unsent(mut self) -> Error {
        self.change(|inner| inner.retriable = true);
        self
    }

    pub(crate) fn with_record(mut self, queue: TopicQueue, offset: u64) -> Error {
        self.change(|inner| inner.record = Some(RecordRef { queue, offset }));
        self
    }

    /// The same error with `context` put before its message.
    pub(crate) fn context(mut self, context: impl fmt::Display) -> Error {
        self.change(|inner| inner.message = format!("{context}: {}", inner.message));
        self
    }

    /// The same error with `note` put after its message.
    pub(crate) fn note(mut self, note: &str) -> Error {
        self.change(|inner| inner.message = format!("{} {note}", inner.message));
        self
    }

    fn change(&mut self, change: impl FnOnce(&mut Inner)) {
        change(Arc::make_mut(&mut self.inner));
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The broker's stable error code, if the broker gave one.
    pub fn code(&self) -> Option<ErrorCode> {
        self.inner.code
    }

    /// Whether the same call can succeed later without being changed.
    pub fn is_retriable(&self) -> bool {
        self.inner.retriable
    }

    /// Whether the request may have taken effect all the same: it had been sent, and no answer came,
    /// or the broker met a fault of its own.
    ///
    /// Sending such a message again may store it twice.
    pub fn outcome_unknown(&self) -> bool {
        self.inner.outcome_unknown
    }

    /// The record the error is about, for [`ErrorKind::CorruptRecord`] and errors of one queue.
    pub fn record(&self) -> Option<&RecordRef> {
        self.inner.record.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("code", &self.inner.code)
            .field("message", &self.inner.message)
            .field("outcome_unknown", &self.inner.outcome_unknown)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {}

fn is_caused_by<E: std::error::Error + 'static>(status: &tonic::Status) -> bool {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |error| error.source()).any(|error| error.is::<E>())
}

/// What the innermost of nested errors says: the outer ones only name the layers it came through.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_without_an_answer_in_time_are_timeouts_with_an_unknown_outcome() {
        let status = tonic::Status::from_error(Box::new(tonic::TimeoutExpired(())));
        let error = Error::from_status("asking", &status);
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.outcome_unknown() && error.is_retriable());

        let lost = Error::from_status("asking", &tonic::Status::cancelled("h2 connection ended"));
        assert_eq!(lost.kind(), ErrorKind::ConnectionLost, "{lost}");
    }
}
