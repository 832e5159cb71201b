//! Makes golden stores with the code as it is, for `tests/golden/v{format}`.
//!
//! `cargo run -p longwire-tests --bin golden-stores -- FOLDER`
//!
//! To be run once for each version of a format that is released, from the release's own code, and
//! committed. What is in `tests/golden` already is never made again.

use std::path::Path;
use std::process::ExitCode;

use longwire_tests::golden::write_stores;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [folder] = &arguments[..] else {
        eprintln!("usage: golden-stores FOLDER, which must not exist");
        return ExitCode::from(64);
    };
    match write_stores(Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot make golden stores in {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}
