//! The arms, and the cases they are compared in.

use serde::{Deserialize, Serialize};

/// A way of sending: a `transfer.mode` of the broker. The single paths are taken as other brokers take
/// them, by the threads that serve sockets, without asking whether the disk has to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Arm {
    Adaptive,
    Buffered,
    Mmap,
    Sendfile,
    Splice,
}

impl Arm {
    pub(crate) const ALL: [Arm; 5] =
        [Arm::Adaptive, Arm::Buffered, Arm::Mmap, Arm::Sendfile, Arm::Splice];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Arm::Adaptive => "adaptive",
            Arm::Buffered => "buffered",
            Arm::Mmap => "mmap",
            Arm::Sendfile => "sendfile",
            Arm::Splice => "splice",
        }
    }
}

/// How the records of one queue lie in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Layout {
    /// One after another.
    #[serde(rename = "contiguous")]
    Contiguous,
    /// In turn with those of nine other queues.
    #[serde(rename = "interleaved-10")]
    Ten,
    /// In turn with those of 999 other queues.
    #[serde(rename = "interleaved-1000")]
    Thousand,
    /// By turns a run of 128 and 64 that are interleaved with nine other queues.
    #[serde(rename = "mixed")]
    Mixed,
    /// One after another, and the newest of the log.
    #[serde(rename = "tail")]
    Tail,
}

impl Layout {
    pub(crate) const ALL: [Layout; 5] =
        [Layout::Contiguous, Layout::Ten, Layout::Mixed, Layout::Thousand, Layout::Tail];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Layout::Contiguous => "contiguous",
            Layout::Ten => "interleaved-10",
            Layout::Thousand => "interleaved-1000",
            Layout::Mixed => "mixed",
            Layout::Tail => "tail",
        }
    }
}

/// Whether what is fetched is in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Residency {
    Hot,
    /// Evicted before every round; every byte is fetched once.
    Cold,
}

/// What else the broker does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Beside {
    Alone,
    /// Another connection reads evicted history, 1 MiB at a time with two fetches in flight.
    CatchUp,
}

/// One point at which all arms are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) size: usize,
    pub(crate) layout: Layout,
    pub(crate) residency: Residency,
    pub(crate) connections: usize,
    /// Fetches that each connection has sent and not yet got an answer to.
    pub(crate) in_flight: usize,
    pub(crate) beside: Beside,
}

impl Case {
    pub(crate) const fn hot(layout: Layout, size: usize) -> Case {
        let (residency, beside) = (Residency::Hot, Beside::Alone);
        Case { size, layout, residency, connections: 1, in_flight: 1, beside }
    }

    const fn cold(mut self) -> Case {
        self.residency = Residency::Cold;
        self
    }

    pub(crate) const fn over(mut self, connections: usize) -> Case {
        self.connections = connections;
        self
    }

    const fn beside_catch_up(mut self) -> Case {
        self.beside = Beside::CatchUp;
        self
    }

    /// A consumer that has its next fetches on their way while it reads.
    const fn streaming(mut self) -> Case {
        self.in_flight = 4;
        self
    }
}

pub(crate) const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The stream that the marks for CPU per GB and for throughput are about.
pub(crate) const STREAM: Case = Case::hot(Layout::Contiguous, MIB).streaming();
/// Scattered records of 1 KiB of a thousand queues, over so many connections that the broker is busy:
/// else a fetch's own cost, the same on every path, hides in part what the records cost.
pub(crate) const SCATTERED: Case = Case::hot(Layout::Thousand, 64 * KIB).over(16);
/// One small record at the tail, alone and beside a catch-up reader.
pub(crate) const NEWEST: Case = Case::hot(Layout::Tail, KIB);
pub(crate) const NEWEST_BESIDE: Case = NEWEST.beside_catch_up();

/// The default cases: not the product of all dimensions, but one line through it for each question.
pub(crate) fn full() -> Vec<Case> {
    let hot = Case::hot;
    let contiguous = |kib: usize| hot(Layout::Contiguous, kib * KIB);
    // From which size on is which path better?
    let mut cases: Vec<Case> =
        [1, 4, 16, 32, 64, 128, 256, 1024, 4096].map(contiguous).into_iter().collect();
    // What does scatter change, and a mixture?
    cases.extend([16, 64, 256, 1024].map(|kib| hot(Layout::Ten, kib * KIB)));
    cases.extend([16, 64, 128].map(|kib| hot(Layout::Thousand, kib * KIB)));
    cases.extend([256, 1024].map(|kib| hot(Layout::Mixed, kib * KIB)));
    // What does it cost to stream, and a single new record?
    cases.extend([STREAM, contiguous(4096).streaming(), NEWEST]);
    // Does the order change with the number of connections?
    for connections in [16, 256] {
        cases.extend([1, 64, 1024].map(|kib| contiguous(kib).over(connections)));
        cases.push(SCATTERED.over(connections));
    }
    // Without the page cache? These restart the brokers, so they come last.
    cases.extend([64, 1024].map(|kib| contiguous(kib).cold()));
    cases.extend([contiguous(1024).cold().over(16), hot(Layout::Ten, 256 * KIB).cold()]);
    // Does somebody who catches up on history hurt somebody else?
    cases.extend([NEWEST_BESIDE, hot(Layout::Ten, 64 * KIB).beside_catch_up()]);
    cases
}

/// Every dimension once, and what the verdicts need.
pub(crate) fn quick() -> Vec<Case> {
    let contiguous = |kib: usize| Case::hot(Layout::Contiguous, kib * KIB);
    let mut cases: Vec<Case> = [1, 16, 64, 256, 1024].map(contiguous).into_iter().collect();
    cases.extend([Case::hot(Layout::Ten, 64 * KIB), SCATTERED, Case::hot(Layout::Mixed, MIB)]);
    cases.extend([STREAM, NEWEST, contiguous(64).over(16), contiguous(1).over(256)]);
    cases.extend([contiguous(1024).cold(), NEWEST_BESIDE]);
    cases
}
