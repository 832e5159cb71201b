//! Makes the seeds of the fuzz targets' corpora, from the codec and from a small store's files.
//!
//! `cargo run -p longwire-tests --bin fuzz-seeds -- fuzz/corpus`
//!
//! Files that are there already, such as inputs a fuzzer has found, are left alone.

use std::path::Path;
use std::process::ExitCode;

use longwire_tests::fuzz_seeds::write_seeds;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [folder] = &arguments[..] else {
        eprintln!("usage: fuzz-seeds FOLDER");
        return ExitCode::from(64);
    };
    match write_seeds(Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot make seeds in {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}
