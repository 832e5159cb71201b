//! A bit flips, in a segment or in any other file of a store that is not running: it is noticed, by the
//! start or by who reads, or it makes no difference. Never is a wrong byte handed out as a right one,
//! and never is what was acknowledged cut off without a word.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use fastrand::Rng;
use longwire_storage::OpenError;
use longwire_storage::disk::FaultDisk;

use super::truth::{Found, Truth};
use super::{EVERYTHING, log, log_bytes, open, worked};
use crate::torture::{Options, Report};

/// Flips if no other number is given.
const FLIPS: u64 = 6_000;
const STEPS: usize = 90;

/// Flips `count` bits (6,000 if not given): a quarter in each of two segments and the rest in all other
/// files, each file's evenly spread. With `all`: every bit of one full segment instead, once in a store
/// that was closed and once in one that was killed.
pub(in crate::torture) fn run(options: &Options) -> Report {
    let mut report = Report::new("bit-flips", options);
    let mut rng = Rng::with_seed(options.seed);
    let flips = options.count.unwrap_or(FLIPS);
    let (mut tally, mut choices) = (Tally::default(), crc32fast::Hasher::new());
    // What a store that was killed had not flushed was not acknowledged: its tail.
    for closed in [true, false] {
        let (disk, truth) = match worked(closed, STEPS, rng.fork()) {
            Ok(worked) => worked,
            Err(error) => {
                report.violation(format!("the workload failed: {error}"));
                continue;
            }
        };
        report.acked += truth.acked_by(usize::MAX);
        let chosen =
            if options.all { full_segment(&disk) } else { spread(&disk, flips / 2, &mut rng) };
        // The views are as long as time has made them, and so differ the bits chosen in them.
        for flip in chosen.iter().filter(|flip| flip.path.starts_with(log())) {
            choices.update(flip.path.as_os_str().as_encoded_bytes());
            choices.update(&flip.bit.to_le_bytes());
        }
        for (flip, outcome) in flip_each(&disk, &truth, chosen) {
            tally.count(&flip, outcome, &mut report);
        }
    }
    report.figure("refused", tally.refused);
    report.figure("told", tally.told);
    report.figure("harmless", tally.harmless);
    report.figure("log_choices_crc", choices.finalize());
    report
}

/// A bit of a file.
#[derive(Debug, Clone)]
struct Flip {
    path: Arc<Path>,
    bit: u64,
}

/// What became of a flip.
#[derive(Debug)]
enum Outcome {
    /// The store did not start, and said what is damaged.
    Refused,
    /// The store started, and a reader of what is damaged was told.
    Told,
    /// Everything was there.
    Harmless,
    /// A promise was broken.
    Broken { lost: u64, misordered: u64, problems: Vec<String> },
}

#[derive(Debug, Default)]
struct Tally {
    refused: u64,
    told: u64,
    harmless: u64,
}

impl Tally {
    fn count(&mut self, flip: &Flip, outcome: Outcome, report: &mut Report) {
        report.cycles += 1;
        match outcome {
            Outcome::Refused => self.refused += 1,
            Outcome::Told => self.told += 1,
            Outcome::Harmless => self.harmless += 1,
            Outcome::Broken { lost, misordered, problems } => {
                report.lost += lost;
                report.misordered += misordered;
                for problem in problems {
                    report.violation(format!(
                        "bit {} of {}: {problem}",
                        flip.bit,
                        flip.path.display()
                    ));
                }
            }
        }
    }
}

/// Bits of every file: half of them in the two newest segments with records, of which one lies wholly
/// behind the durable position.
fn spread(disk: &FaultDisk, flips: u64, rng: &mut Rng) -> Vec<Flip> {
    let files = disk.files().expect("files in memory can be read");
    let (segments, others): (Vec<_>, Vec<_>) = files
        .iter()
        .filter(|(path, bytes)| bytes.iter().any(|byte| *byte != 0) && !path.ends_with("lock"))
        .partition(|(path, _)| path.starts_with(log()));
    let newest = &segments[segments.len().saturating_sub(2)..];
    let of_segments = newest.iter().map(|file| (file, flips / 4));
    let share = flips / 2 / others.len().max(1) as u64;
    let of_others = others.iter().map(|file| (file, share));
    let mut chosen = Vec::new();
    for ((path, bytes), flips) in of_segments.chain(of_others) {
        let (path, bits) = (Arc::from(path.as_path()), bytes.len() as u64 * 8);
        let flips = flips.clamp(1, bits);
        // One somewhere in each of as many stretches of the same length.
        chosen.extend((0..flips).map(|number| {
            let stretch = number * bits / flips..(number + 1) * bits / flips;
            Flip { path: Arc::clone(&path), bit: rng.u64(stretch) }
        }));
    }
    chosen
}

/// Every bit of the newest segment but one with records: it is full.
fn full_segment(disk: &FaultDisk) -> Vec<Flip> {
    let mut written = log_bytes(disk);
    written.retain(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
    let full = written.len().checked_sub(2).expect("the workload fills a segment");
    let (path, bytes) = &written[full];
    let path: Arc<Path> = Arc::from(path.as_path());
    (0..bytes.len() as u64 * 8).map(|bit| Flip { path: Arc::clone(&path), bit }).collect()
}

/// Makes every flip, each in a copy of the disk of its own, on all cores.
fn flip_each(disk: &FaultDisk, truth: &Truth, chosen: Vec<Flip>) -> Vec<(Flip, Outcome)> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let share = chosen.len().div_ceil(workers).max(1);
    let judge = |flip: &Flip| (flip.clone(), outcome(disk, truth, flip));
    std::thread::scope(|scope| {
        let workers: Vec<_> = chosen
            .chunks(share)
            .map(|flips| scope.spawn(move || flips.iter().map(judge).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
    })
}

/// Makes a flip, starts the store, and reads all of it.
fn outcome(disk: &FaultDisk, truth: &Truth, flip: &Flip) -> Outcome {
    let broken = |problem| Outcome::Broken { lost: 0, misordered: 0, problems: vec![problem] };
    let flipped = disk.copy().and_then(|copy| {
        let mut bytes = copy.files()?.remove(&*flip.path).unwrap_or_default();
        bytes[(flip.bit / 8) as usize] ^= 1 << (flip.bit % 8);
        copy.put(&flip.path, Some(&bytes))?;
        Ok(copy)
    });
    let copy = match flipped {
        Ok(copy) => copy,
        Err(error) => return broken(error.to_string()),
    };
    let seen = catch_unwind(AssertUnwindSafe(|| {
        let store = open(&copy)?;
        Ok(truth.check(&store, EVERYTHING))
    }));
    match seen {
        Err(_) => broken("a panic".to_owned()),
        Ok(Err(OpenError::Corrupt { .. } | OpenError::Version { .. })) => Outcome::Refused,
        Ok(Err(error)) => broken(error.to_string()),
        Ok(Ok(Found { lost, misordered, problems, told, .. })) => {
            if !problems.is_empty() || lost + misordered > 0 {
                Outcome::Broken { lost, misordered, problems }
            } else if told.is_empty() {
                Outcome::Harmless
            } else {
                Outcome::Told
            }
        }
    }
}
