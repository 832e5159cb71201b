//! Standard output and standard error, either of which may not be there to be written to.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::exit;

/// Writes a result to standard output. The error is what to exit with.
pub(crate) fn print(text: &str) -> Result<(), ExitCode> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // Nobody reads any more, which is no news.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(ExitCode::from(exit::BROKEN_PIPE))
        }
        Err(error) => {
            complain(&format!("cannot write the output: {error}"));
            Err(ExitCode::from(exit::IO))
        }
    }
}

/// Says on standard error what went wrong.
pub(crate) fn complain(message: &str) {
    // Where even this cannot be said there is nobody left to tell.
    let _ = writeln!(io::stderr(), "longwire-broker: {message}");
}
