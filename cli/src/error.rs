//! How a command fails: one line on standard error and an exit code scripts can use.

use std::io::{self, Write};
use std::process::ExitCode;

use longwire_client::{Error, ErrorCode, ErrorKind};

/// The exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed, or not verified
  2    wrong usage, or an argument the broker cannot take
  3    no such topic, queue or group
  4    the broker cannot be reached, or was lost ('consume' goes on trying unless
       --timeout ends it)
  5    timed out
  6    input refused: a line or file longer than 4 MiB, or a line without a key
       that can be stored
  130  interrupted
  141  nobody reads the output any more";

/// What a command's exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Unreachable = 4,
    TimedOut = 5,
    InputRefused = 6,
    Interrupted = 130,
    /// What a shell sees of a process that SIGPIPE ended.
    BrokenPipe = 141,
}

/// A command that did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    /// What failed, why, and what to do; nothing where the exit code says it all.
    message: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: Some(message.into()) }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// The user pressed Ctrl-C, and knows it.
    pub(crate) fn interrupted() -> Failure {
        Failure { exit: Exit::Interrupted, message: None }
    }

    /// The outcome has been reported already.
    pub(crate) fn reported(exit: Exit) -> Failure {
        Failure { exit, message: None }
    }

    /// Standard output or a file could not be written. Nobody reading any more is no news.
    pub(crate) fn write(what: &str, error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure { exit: Exit::BrokenPipe, message: None },
            _ => Failure::failed(format!("cannot write {what}: {error}")),
        }
    }

    /// The same failure with more to say at the end.
    pub(crate) fn and(mut self, more: &str) -> Failure {
        if let Some(message) = &mut self.message {
            message.push_str("; ");
            message.push_str(more);
        }
        self
    }

    /// Says it on standard error.
    pub(crate) fn report(self) -> ExitCode {
        if let Some(message) = self.message {
            // Where even this cannot be said there is nobody left to tell.
            let _ = writeln!(io::stderr(), "longwire: {message}");
        }
        ExitCode::from(self.exit as u8)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let hint = error.code().and_then(hint).unwrap_or_default();
        Failure::new(exit_of(&error), format!("{error}{hint}"))
    }
}

fn exit_of(error: &Error) -> Exit {
    match (error.code(), error.kind()) {
        (Some(code), _) => match code {
            ErrorCode::UnknownTopic | ErrorCode::UnknownQueue | ErrorCode::UnknownGroup => {
                Exit::NotFound
            }
            ErrorCode::InvalidName
            | ErrorCode::InvalidRequest
            | ErrorCode::OffsetOutOfRange
            | ErrorCode::SystemTopic => Exit::Usage,
            ErrorCode::MessageTooLarge => Exit::InputRefused,
            ErrorCode::ShuttingDown | ErrorCode::StorePoisoned => Exit::Unreachable,
            ErrorCode::Timeout => Exit::TimedOut,
            _ => Exit::Failed,
        },
        (None, ErrorKind::InvalidArgument) => Exit::Usage,
        (None, ErrorKind::Unreachable | ErrorKind::ConnectionLost) => Exit::Unreachable,
        (None, ErrorKind::Timeout) => Exit::TimedOut,
        (None, _) => Exit::Failed,
    }
}

fn hint(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::UnknownTopic => Some("; 'longwire topic list' shows what there is"),
        ErrorCode::UnknownGroup => Some("; 'longwire group list' shows what there is"),
        ErrorCode::TopicExists => Some("; --if-not-exists accepts that"),
        _ => None,
    }
}
