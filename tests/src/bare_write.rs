//! A file written by nothing but `write`, as a measure and to have memory for the page cache.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// What is written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Writes a file in `folder`, removes it, and returns how many bytes a second went into the page
/// cache.
///
/// The host of a virtual machine takes free memory back, and a page that it has to find anew costs
/// several times what the copy to it does. Right after this, as many bytes can be written to memory
/// that the host has found already; so runs that follow it can be compared.
///
/// # Panics
///
/// If there is no room for the file.
pub fn bare_write(folder: &Path, bytes: u64) -> f64 {
    let path = folder.join("bare-write");
    let mut file = File::create(&path).expect("a file");
    let chunk = vec![1; CHUNK_BYTES];
    let chunks = bytes.div_ceil(CHUNK_BYTES as u64);
    let began = Instant::now();
    for _ in 0..chunks {
        file.write_all(&chunk).expect("room for a file as large as the log");
    }
    let taken = began.elapsed();
    std::fs::remove_file(&path).expect("the file is gone");
    chunks as f64 * CHUNK_BYTES as f64 / taken.as_secs_f64()
}
