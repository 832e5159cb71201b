//! The table and the JSON file.

use std::fs;
use std::path::Path;

use hdrhistogram::Histogram;
use longwire_benches::{median, percentiles_us};
use longwire_storage::AppendPath;
use serde_json::{Value, json};

use crate::case::{Closed, Open, durability_name};
use crate::{closed, open};

/// What has been measured so far. Rows are printed as they come.
pub(crate) struct Report {
    conditions: String,
    rounds: usize,
    amplification_method: String,
    cells: Vec<Value>,
}

impl Report {
    pub(crate) fn new(conditions: String, rounds: usize) -> Report {
        println!("append: {conditions} | rounds {rounds}");
        Report { conditions, rounds, amplification_method: String::new(), cells: Vec::new() }
    }

    pub(crate) fn closed_header(&self) {
        println!(
            "{:32} {:7} {:>9} {:>11} {:>12} {:>9} {:>9} {:>9}",
            "as fast as it goes",
            "path",
            "MB/s",
            "appends/s",
            "CPU ms/GB",
            "p50 us",
            "p99 us",
            "p99.9 us"
        );
    }

    pub(crate) fn closed(&mut self, case: &Closed, runs: [(AppendPath, Vec<closed::Outcome>); 2]) {
        for (path, runs) in runs {
            let over = |figure: &dyn Fn(&closed::Outcome) -> f64| {
                rounded(median(runs.iter().map(figure).collect()))
            };
            let mb_per_s = over(&|run| run.bytes / 1e6 / run.time.as_secs_f64());
            let appends_per_s = over(&|run| run.appends / run.time.as_secs_f64());
            let cpu_ms_per_gb = over(&|run| run.cpu.as_secs_f64() * 1e12 / run.bytes);
            let [p50, p99, p999, max] = times(runs.iter().map(|run| &run.latency));
            println!(
                "{:32} {:7} {mb_per_s:9.0} {appends_per_s:11.0} {cpu_ms_per_gb:12.0} {p50:9.1} \
                 {p99:9.1} {p999:9.1}",
                case.to_string(),
                name(path),
            );
            self.cells.push(json!({
                "arm": name(path),
                "loop": "closed",
                "durability": durability_name(case.durability),
                "record_bytes": case.body_bytes,
                "batch": case.batch,
                "threads": case.threads,
                "mb_per_s": mb_per_s,
                "appends_per_s": appends_per_s,
                "cpu_ms_per_gb": cpu_ms_per_gb,
                "p50_us": p50,
                "p99_us": p99,
                "p999_us": p999,
                "max_us": max,
            }));
        }
    }

    pub(crate) fn open_header(&mut self, amplification_method: &str) {
        self.amplification_method = amplification_method.to_owned();
        println!("\nlatency from due time; written bytes per byte of log ({amplification_method})");
        println!(
            "{:32} {:7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "at a fixed rate",
            "path",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "max us",
            "device",
            "process"
        );
    }

    pub(crate) fn open(&mut self, case: &Open, runs: [(AppendPath, Vec<open::Outcome>); 2]) {
        for (path, runs) in runs {
            let over = |figure: &dyn Fn(&open::Outcome) -> Option<f64>| {
                let figures: Option<Vec<f64>> = runs.iter().map(figure).collect();
                figures.map(|figures| rounded(median(figures)))
            };
            let device = over(&|run| run.device_bytes_per_byte);
            let process = over(&|run| run.process_bytes_per_byte);
            let [p50, p99, p999, max] = times(runs.iter().map(|run| &run.latency));
            let shown = |factor: Option<f64>| factor.map_or("?".into(), |f| format!("{f:.2}"));
            println!(
                "{:32} {:7} {p50:9.1} {p99:9.1} {p999:9.1} {max:9.0} {:>9} {:>9}",
                case.to_string(),
                name(path),
                shown(device),
                shown(process),
            );
            self.cells.push(json!({
                "arm": name(path),
                "loop": "open",
                "durability": durability_name(case.durability),
                "record_bytes": case.body_bytes,
                "batch": 1,
                "threads": 1,
                "rate": case.rate,
                "p50_us": p50,
                "p99_us": p99,
                "p999_us": p999,
                "max_us": max,
                "device_bytes_per_byte": device,
                "process_bytes_per_byte": process,
            }));
        }
    }

    /// Writes `target/longwire-bench/append.json`.
    pub(crate) fn write(self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/longwire-bench");
        fs::create_dir_all(&folder).unwrap();
        let report = json!({
            "benchmark": "append",
            "conditions": self.conditions,
            "rounds": self.rounds,
            "amplification_method": self.amplification_method,
            "cells": self.cells,
        });
        fs::write(folder.join("append.json"), format!("{report:#}\n")).unwrap();
        println!("\n{} cells in target/longwire-bench/append.json", self.cells.len());
    }
}

/// p50, p99, p99.9 and the largest, in microseconds: medians over the rounds.
fn times<'a>(rounds: impl Iterator<Item = &'a Histogram<u64>>) -> [f64; 4] {
    let mut times: [Vec<f64>; 4] = Default::default();
    for round in rounds {
        let [p50, p99, p999] = percentiles_us(round);
        let figures = [p50, p99, p999, round.max() as f64 / 1e3];
        times.iter_mut().zip(figures).for_each(|(times, figure)| times.push(figure));
    }
    times.map(|times| rounded(median(times)))
}

fn name(path: AppendPath) -> &'static str {
    match path {
        AppendPath::Mapped => "mapped",
        AppendPath::Pwrite => "pwrite",
    }
}

fn rounded(figure: f64) -> f64 {
    (figure * 1e3).round() / 1e3
}
