//! A bit flips, in a segment or in any other file of a store that is not running: it is noticed, by the
//! start or by who reads, or it makes no difference. Never is a wrong byte handed out as a right one,
//! and never is what was acknowledged cut off without a word.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fastrand::Rng;
use longwire_storage::disk::FaultDisk;
use longwire_storage::{AppendPath, OpenError};

use super::truth::Truth;
use super::workload::Workload;
use super::{DIR, open};
use crate::torture::{Options, Report};

/// Flips if no other number is given.
const FLIPS: u64 = 6_000;
const STEPS: usize = 90;
const SEGMENT_BYTES: u64 = 64 << 10;

/// Flips `count` bits (6,000 if not given): every bit of a segment and of each other file once if that is
/// enough, else as many as there are, evenly spread.
pub(in crate::torture) fn run(options: &Options) -> Report {
    let mut report = Report::new("bit-flips", options);
    let mut rng = Rng::with_seed(options.seed);
    let flips = options.count.unwrap_or(FLIPS);
    let mut tally = Tally::default();
    for closed in [true, false] {
        match prepare(closed, rng.fork()) {
            Ok((disk, truth)) => {
                report.acked += truth.acked_by(usize::MAX);
                flip_files(&disk, &truth, flips / 2, &mut tally, &mut rng, &mut report);
            }
            Err(error) => report.violation(format!("the workload failed: {error}")),
        }
    }
    report.figure("refused", tally.refused);
    report.figure("told", tally.told);
    report.figure("harmless", tally.harmless);
    report
}

/// What became of the flips.
#[derive(Debug, Default)]
struct Tally {
    refused: u64,
    told: u64,
    harmless: u64,
}

fn prepare(closed: bool, rng: Rng) -> Result<(FaultDisk, Truth), String> {
    let started = Workload::start(FaultDisk::default(), AppendPath::Pwrite, rng);
    let mut workload = started.map_err(|error| error.to_string())?;
    workload.make_topics()?;
    for _ in 0..STEPS {
        workload.step()?;
    }
    if closed { Ok(workload.finish()) } else { workload.killed() }
}

/// Shares the flips out: half of them to two segments, the rest to all other files.
fn flip_files(
    disk: &FaultDisk,
    truth: &Truth,
    flips: u64,
    tally: &mut Tally,
    rng: &mut Rng,
    report: &mut Report,
) {
    let files = disk.files().expect("files in memory can be read");
    let log = Path::new(DIR).join("commitlog");
    let is_written = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
    let (segments, others): (Vec<_>, Vec<_>) =
        files.iter().filter(|(_, bytes)| is_written(bytes)).partition(|(p, _)| p.starts_with(&log));
    // The newest with records, and one that lies wholly behind the durable position.
    let newest = segments.len().saturating_sub(2)..segments.len();
    for (path, bytes) in segments[newest].iter().rev() {
        let bits = (bytes.len() as u64).min(SEGMENT_BYTES) * 8;
        flip_bits(disk, truth, (path, bits), flips / 4, tally, rng, report);
    }
    let share = flips / 2 / others.len().max(1) as u64;
    for (path, bytes) in others {
        if !path.ends_with("lock") {
            let bits = bytes.len() as u64 * 8;
            flip_bits(disk, truth, (path, bits), share, tally, rng, report);
        }
    }
}

/// Flips bits of one file, evenly spread and each somewhere in its stretch.
fn flip_bits(
    disk: &FaultDisk,
    truth: &Truth,
    (path, bits): (&Path, u64),
    flips: u64,
    tally: &mut Tally,
    rng: &mut Rng,
    report: &mut Report,
) {
    let flips = flips.clamp(1, bits);
    for number in 0..flips {
        let (from, until) = (number * bits / flips, (number + 1) * bits / flips);
        flip(disk, truth, path, rng.u64(from..until), tally, report);
    }
}

fn flip(
    disk: &FaultDisk,
    truth: &Truth,
    path: &Path,
    bit: u64,
    tally: &mut Tally,
    report: &mut Report,
) {
    report.cycles += 1;
    let what = format!("bit {bit} of {}", path.display());
    let flipped = disk.copy().and_then(|copy| {
        let mut bytes = copy.files()?.remove(path).unwrap_or_default();
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        copy.put(path, Some(&bytes))?;
        Ok(copy)
    });
    let copy = match flipped {
        Ok(copy) => copy,
        Err(error) => return report.violation(format!("{what}: {error}")),
    };
    let seen = catch_unwind(AssertUnwindSafe(|| {
        let store = open(&copy)?;
        Ok(truth.check(&store, usize::MAX - 1))
    }));
    match seen {
        Err(_) => report.violation(format!("{what}: a panic")),
        Ok(Err(OpenError::Corrupt { .. } | OpenError::Version { .. })) => tally.refused += 1,
        Ok(Err(error)) => report.violation(format!("{what}: {error}")),
        Ok(Ok(found)) => {
            report.lost += found.lost;
            report.misordered += found.misordered;
            found.problems.iter().for_each(|p| report.violation(format!("{what}: {p}")));
            match (found.problems.is_empty(), found.told.is_empty()) {
                (true, true) => tally.harmless += 1,
                (true, false) => tally.told += 1,
                _ => {}
            }
        }
    }
}
