//! One arm at one case: what was measured.

use serde::{Deserialize, Serialize};

use crate::matrix::{Arm, Beside, Case, Layout, Residency};

/// One object of `fetch.json`. Percentiles are over all rounds, other figures the rounds' medians.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cell {
    pub(crate) arm: Arm,
    /// Bytes asked for by each fetch.
    pub(crate) size: usize,
    pub(crate) layout: Layout,
    pub(crate) residency: Residency,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    pub(crate) beside: Beside,
    pub(crate) fetches: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
    pub(crate) mb_per_s: f64,
    /// Of the broker, for 10^9 bytes of records.
    pub(crate) cpu_ms_per_gb: f64,
    pub(crate) cpu_us_per_fetch: f64,
    /// `None` where no tool can count them.
    pub(crate) syscalls_per_fetch: Option<f64>,
    pub(crate) voluntary_switches_per_fetch: f64,
    pub(crate) involuntary_switches_per_fetch: f64,
    pub(crate) minor_faults_per_fetch: f64,
    pub(crate) major_faults_per_fetch: f64,
    /// Bytes that came from the disk for each byte fetched.
    pub(crate) disk_bytes_per_byte: f64,
    pub(crate) rounds: Vec<Round>,
}

/// The figures of one round, to tell a difference from noise.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Round {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) mb_per_s: f64,
    pub(crate) cpu_us_per_fetch: f64,
}

impl Cell {
    pub(crate) fn case(&self) -> Case {
        Case {
            size: self.size,
            layout: self.layout,
            residency: self.residency,
            connections: self.connections,
            in_flight: self.in_flight,
            beside: self.beside,
        }
    }
}

/// The cells of one run, to look figures up in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cells<'a>(pub(crate) &'a [Cell]);

impl<'a> Cells<'a> {
    pub(crate) fn find(self, arm: Arm, case: Case) -> Option<&'a Cell> {
        self.0.iter().find(|cell| cell.arm == arm && cell.case() == case)
    }

    /// Every case once, in the order of the run.
    pub(crate) fn cases(self) -> Vec<Case> {
        let mut cases = Vec::new();
        for cell in self.0 {
            if !cases.contains(&cell.case()) {
                cases.push(cell.case());
            }
        }
        cases
    }

    /// All arms at one case.
    pub(crate) fn at(self, case: Case) -> impl Iterator<Item = &'a Cell> {
        self.0.iter().filter(move |cell| cell.case() == case)
    }
}

impl Case {
    /// "64 KiB contiguous, hot, 1 connection".
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("{} {}", size(self.size), self.layout.name());
        text += if self.residency == Residency::Cold { ", cold" } else { ", hot" };
        if self.connections > 1 {
            text += &format!(", {} connections", self.connections);
        }
        if self.in_flight > 1 {
            text += &format!(", {} in flight", self.in_flight);
        }
        if self.beside == Beside::CatchUp {
            text += ", beside a catch-up reader";
        }
        text
    }
}

/// "64 KiB".
pub(crate) fn size(bytes: usize) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}
