//! Error codes as gRPC statuses.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::ErrorCode;

/// The `domain` of every `google.rpc.ErrorInfo` Longwire sends.
const ERROR_DOMAIN: &str = "longwire";

/// A gRPC status that carries the error code as the reason of a `google.rpc.ErrorInfo`.
pub fn status(code: ErrorCode, message: impl Into<String>) -> Status {
    use ErrorCode as E;
    let grpc = match code {
        E::UnknownTopic | E::UnknownQueue | E::UnknownGroup => Code::NotFound,
        E::TopicExists => Code::AlreadyExists,
        E::OffsetOutOfRange => Code::OutOfRange,
        E::InvalidName | E::InvalidRequest | E::InvalidRecord => Code::InvalidArgument,
        E::BadFrame | E::FrameTooLarge | E::MessageTooLarge => Code::InvalidArgument,
        E::CorruptRecord | E::CorruptLog => Code::DataLoss,
        E::StorageFull | E::Overloaded => Code::ResourceExhausted,
        E::StorePoisoned | E::ShuttingDown => Code::Unavailable,
        E::UnsupportedVersion => Code::Unimplemented,
        E::UnknownMember | E::NotOwner | E::GroupNotEmpty => Code::FailedPrecondition,
        E::SystemTopic => Code::PermissionDenied,
        E::Timeout => Code::DeadlineExceeded,
        E::Internal => Code::Internal,
    };
    let details =
        ErrorDetails::with_error_info(code.name(), ERROR_DOMAIN, std::collections::HashMap::new());
    Status::with_error_details(grpc, message, details)
}

/// The error code a status carries, if it is one of Longwire's.
pub fn error_code_of(status: &Status) -> Option<ErrorCode> {
    let info = status.get_details_error_info()?;
    (info.domain == ERROR_DOMAIN).then(|| ErrorCode::from_name(&info.reason))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_way_through_grpc() {
        for &code in ErrorCode::ALL {
            assert_eq!(error_code_of(&status(code, "why")), Some(code));
        }
        assert_eq!(error_code_of(&Status::not_found("foreign")), None);
    }
}
