//! Stable error numbers, the same on the data plane and the control plane.

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal, $retriable:literal;)+) => {
        /// What went wrong, as a stable number. docs/protocol.md lists them for other languages.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl ErrorCode {
            /// Every code, in the order of the numbers.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)+];

            /// The stable upper-case name; the `reason` of a gRPC error.
            pub fn name(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)+ }
            }

            /// Whether the same request can succeed later without being changed.
            pub fn is_retriable(self) -> bool {
                match self { $(ErrorCode::$name => $retriable,)+ }
            }
        }
    };
}

error_codes! {
    /// A fault inside the broker. The outcome of the request is unknown.
    Internal = 1, "INTERNAL", false;
    /// No topic of that name, and it may not be created automatically.
    UnknownTopic = 2, "UNKNOWN_TOPIC", false;
    /// The topic has fewer queues.
    UnknownQueue = 3, "UNKNOWN_QUEUE", false;
    /// The offset is outside the retained and visible range, which the answer names.
    OffsetOutOfRange = 4, "OFFSET_OUT_OF_RANGE", false;
    /// A topic or group name with the wrong characters or length.
    InvalidName = 5, "INVALID_NAME", false;
    /// A field of the request is missing or makes no sense.
    InvalidRequest = 6, "INVALID_REQUEST", false;
    /// Bytes that are not a frame of this protocol. The connection is closed.
    BadFrame = 7, "BAD_FRAME", false;
    /// A frame longer than the broker accepts. The connection is closed.
    FrameTooLarge = 8, "FRAME_TOO_LARGE", false;
    /// A body, topic or property block over its limit.
    MessageTooLarge = 9, "MESSAGE_TOO_LARGE", false;
    /// A record whose fields contradict each other or the request.
    InvalidRecord = 10, "INVALID_RECORD", false;
    /// A record whose checksum does not match its bytes.
    CorruptRecord = 11, "CORRUPT_RECORD", false;
    /// No disk space for the next segment. Reads go on; writes resume when there is space.
    StorageFull = 12, "STORAGE_FULL", true;
    /// A write or sync of the log failed; the broker is going down.
    StorePoisoned = 13, "STORE_POISONED", true;
    /// The broker is stopping.
    ShuttingDown = 14, "SHUTTING_DOWN", true;
    /// A limit on memory or connections is reached; try again after a pause.
    Overloaded = 15, "OVERLOADED", true;
    /// The peer speaks another version of the data plane.
    UnsupportedVersion = 16, "UNSUPPORTED_VERSION", false;
    /// There is a topic of that name already.
    TopicExists = 17, "TOPIC_EXISTS", false;
    /// No group of that name.
    UnknownGroup = 18, "UNKNOWN_GROUP", false;
    /// The member has left the group, or was taken for dead.
    UnknownMember = 19, "UNKNOWN_MEMBER", false;
    /// The queue belongs to another member by now.
    NotOwner = 20, "NOT_OWNER", false;
    /// The group has members; the operation needs it empty.
    GroupNotEmpty = 21, "GROUP_NOT_EMPTY", false;
    /// The topic is one of Longwire's own and cannot be changed from outside.
    SystemTopic = 22, "SYSTEM_TOPIC", false;
    /// The log is damaged below the durable position.
    CorruptLog = 23, "CORRUPT_LOG", false;
    /// The client did not keep a deadline of the protocol. The connection is closed.
    Timeout = 24, "TIMEOUT", true;
}

impl ErrorCode {
    /// The code of a number from the wire; `None` for 0 and for numbers this build does not know.
    pub fn from_number(number: u32) -> Option<ErrorCode> {
        ErrorCode::ALL.iter().copied().find(|code| code.number() == number)
    }

    /// The code of a stable name.
    pub fn from_name(name: &str) -> Option<ErrorCode> {
        ErrorCode::ALL.iter().copied().find(|code| code.name() == name)
    }

    /// The number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_round_trip() {
        for (i, &code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(code.number() as usize, i + 1, "numbers are dense, so none is used twice");
            assert_eq!(ErrorCode::from_number(code.number()), Some(code));
            assert_eq!(ErrorCode::from_name(code.name()), Some(code));
        }
        assert_eq!(ErrorCode::from_number(0), None);
        assert_eq!(ErrorCode::from_number(u32::MAX), None);
    }
}
