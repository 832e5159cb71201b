//! Asks before something is lost.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::error::Failure;

/// Lets the command go on if `yes` was given or the user agrees; without a terminal nobody can.
pub(crate) fn confirm(yes: bool, what: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::usage(format!("{what} cannot be undone; add --yes to do it")));
    }
    let mut answer = String::new();
    let asked = write!(io::stderr(), "{what} cannot be undone. Do it? [y/N] ")
        .and_then(|()| io::stderr().flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    match asked {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::failed("not confirmed; nothing was changed")),
    }
}
