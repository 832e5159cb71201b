//! The fuzz targets' bodies hold for the committed corpora and for mutations of them, on any toolchain.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../fuzz/src/targets/mod.rs"]
pub mod targets;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use targets::TARGETS;

/// Mutations end after this many for each target, or this long.
const MUTATIONS_MAX: u32 = 3_000;
const TIME_MAX: Duration = Duration::from_secs(4);

/// The inputs of a target, in the order of their names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let paths = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], random: &mut fastrand::Rng) {
    for _ in 0..random.u32(1..4) {
        let at = random.usize(0..input.len().max(1));
        match (random.u8(0..7), input.is_empty()) {
            (0, false) => input[at] ^= 1 << random.u8(0..8),
            (1, false) => input[at] = random.u8(..),
            (2, false) => _ = input.drain(at..(at + random.usize(1..64)).min(input.len())),
            (3, false) => input.truncate(at),
            (4, false) => {
                // Lengths live in aligned words.
                let word = [u32::MAX, 1 << 31, 0, random.u32(..), random.u32(..256)];
                let word = random.choice(word).unwrap_or(0).to_be_bytes();
                let to = (at + 4).min(input.len());
                input[at..to].copy_from_slice(&word[..to - at]);
            }
            (5, _) => {
                let other = random.choice(others).map_or(&[][..], |other| other);
                let from = random.usize(0..other.len().max(1));
                let to = (from + random.usize(1..256)).min(other.len());
                input.splice(
                    at.min(input.len())..at.min(input.len()),
                    other[from..to].iter().copied(),
                );
            }
            _ => (0..random.u8(1..16)).for_each(|_| input.push(random.u8(..))),
        }
    }
}

/// Runs a target's corpus and mutations of it, the same ones every time.
fn replay(target: &str) {
    let corpus = corpus(target);
    assert!(corpus.len() >= 3, "{target} has hardly any corpus");
    corpus.iter().for_each(|input| run(target, input));
    run(target, &[]);
    let mut random = fastrand::Rng::with_seed(7);
    let began = Instant::now();
    let mut done = 0;
    while done < MUTATIONS_MAX && began.elapsed() < TIME_MAX {
        let mut input = random.choice(&corpus).cloned().unwrap_or_default();
        mutate(&mut input, &corpus, &mut random);
        run(target, &input);
        done += 1;
    }
    println!("{target}: {} inputs, {done} mutations", corpus.len());
}

fn run(target: &str, input: &[u8]) {
    let kept = Kept(target, input);
    targets::run(target, input);
    std::mem::forget(kept);
}

/// Writes the input down where a target fails.
struct Kept<'a>(&'a str, &'a [u8]);

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        let path = std::env::temp_dir().join(format!("longwire-fuzz-{}", self.0));
        let written = fs::write(&path, self.1);
        eprintln!("the input that failed {} is in {}: {written:?}", self.0, path.display());
    }
}

#[test]
fn every_target_is_replayed_and_has_a_binary() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let mut binaries: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    binaries.sort();
    assert_eq!(binaries, TARGETS.map(|(name, _)| name));
}

macro_rules! replays {
    ($($target:ident: $test:ident;)+) => {
        $(#[test]
        fn $test() {
            replay(stringify!($target));
        })+

        #[test]
        fn no_target_is_left_out() {
            assert_eq!([$(stringify!($target)),+], TARGETS.map(|(name, _)| name));
        }
    };
}

replays! {
    checkpoint: a_checkpoint_says_what_was_written_whatever_was_there_before;
    configuration: a_configuration_is_refused_or_reads_back_as_it_was;
    consume_queue: a_consume_queue_holds_what_a_list_holds;
    frame: frames_are_taken_whole_or_refused;
    produce: runs_are_records_of_their_queue_or_refused;
    record: records_stay_inside_their_bytes_and_round_trip;
    segment_scan: a_walk_finds_whole_records_where_they_stand_and_nothing_else;
    store_model: a_store_holds_what_a_list_holds;
    views: views_are_a_pure_fold_whatever_is_gone;
}
