//! Runs the cases: the arms take turns within every round.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hdrhistogram::Histogram;
use longwire_benches::{histogram, median, percentiles_us};

use crate::cell::{Cell, Round};
use crate::client::{Client, Outcome};
use crate::events::{Method, SYSCALLS};
use crate::matrix::{Beside, Case, Layout, Residency};
use crate::pinning::Pinning;
use crate::process::Counters;
use crate::store::{ArmBroker, Sizes};

/// Fetches of the run in which system calls are counted, and the most bytes of it.
const COUNTED_FETCHES: u64 = 200;
const COUNTED_BYTES: u64 = 32 << 20;

/// How a run is to be done.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) sizes: Sizes,
    pub(crate) rounds: usize,
    /// How long one arm is measured in one round.
    pub(crate) moment: Duration,
    /// Bodies are read instead of thrown away.
    pub(crate) copy: bool,
    pub(crate) pinning: Pinning,
    pub(crate) method: Method,
    /// A folder for what tools write.
    pub(crate) scratch: &'a Path,
}

/// One arm in one round.
struct Sample {
    outcome: Outcome,
    used: Counters,
    /// Fetched by the catch-up reader meanwhile.
    beside: (u64, u64),
}

impl Plan<'_> {
    /// Fetches every layout once by every arm, so that page cache and page tables are as they stay.
    pub(crate) fn warm(&self, arms: &mut [ArmBroker]) -> io::Result<()> {
        for broker in arms {
            for layout in Layout::ALL {
                let case = Case {
                    size: 64 << 10,
                    layout,
                    residency: Residency::Hot,
                    connections: 1,
                    in_flight: 2,
                    beside: Beside::Alone,
                };
                let mut client = self.start(broker, &case)?;
                let slots = broker.records(&self.sizes, layout).slots(case.size);
                client.run(&case, |begun, _| begun < slots)?;
            }
        }
        Ok(())
    }

    /// Measures all arms at one case; `between` has a turn in every round, as if it were an arm.
    pub(crate) fn case(
        &self,
        arms: &mut [ArmBroker],
        case: &Case,
        mut between: impl FnMut() -> io::Result<()>,
    ) -> io::Result<Vec<Cell>> {
        let mut samples: Vec<Vec<Sample>> = arms.iter().map(|_| Vec::new()).collect();
        for round in 0..self.rounds {
            for turn in 0..arms.len() {
                let at = (turn + round) % arms.len();
                samples[at].push(self.sample(&mut arms[at], case)?);
            }
            between()?;
        }
        let mut cells = Vec::new();
        for (broker, samples) in arms.iter_mut().zip(samples) {
            let syscalls = self.syscalls(broker, case)?;
            cells.push(summarise(broker, case, &samples, syscalls));
        }
        Ok(cells)
    }

    /// The broker, pinned, and a client that has connected.
    pub(crate) fn start(&self, broker: &mut ArmBroker, case: &Case) -> io::Result<Client> {
        self.pinning.serve();
        let address = broker.running().addresses().data;
        self.pinning.consume();
        Client::connect(address, broker.records(&self.sizes, case.layout), case, self.copy)
    }

    /// Starts the broker anew, with nothing in memory of the log before `end`.
    pub(crate) fn restart_cold(&self, broker: &mut ArmBroker, end: u64) -> io::Result<()> {
        self.pinning.serve();
        let resident = broker.restart_cold(end)?;
        self.pinning.consume();
        if resident > 0.05 {
            println!("  only {:.0} % could be evicted", (1.0 - resident) * 100.0);
        }
        Ok(())
    }

    fn sample(&self, broker: &mut ArmBroker, case: &Case) -> io::Result<Sample> {
        if case.beside == Beside::CatchUp {
            self.restart_cold(broker, self.sizes.history_end())?;
        } else if case.residency == Residency::Cold {
            self.restart_cold(broker, self.sizes.end())?;
        }
        let mut client = self.start(broker, case)?;
        let pid = broker.running().pid();
        if case.beside == Beside::CatchUp {
            return self.sample_beside(broker, client, case);
        }
        if case.residency == Residency::Hot {
            let first = (case.connections * case.in_flight) as u64;
            client.run(case, |begun, took| begun < 4 * first && took < self.moment / 4)?;
        }
        let before = Counters::of(pid)?;
        let outcome = client.run(case, |_, took| took < self.moment)?;
        let used = Counters::of(pid)?.since(before);
        Ok(Sample { outcome, used, beside: (0, 0) })
    }

    fn sample_beside(
        &self,
        broker: &mut ArmBroker,
        mut client: Client,
        case: &Case,
    ) -> io::Result<Sample> {
        let pid = broker.running().pid();
        // All of it: a cold case may have been before, and evicted it.
        let slots = broker.records(&self.sizes, case.layout).slots(case.size);
        client.run(case, |begun, took| begun < slots || took < self.moment / 4)?;
        let ((outcome, used), beside) = self.beside_history(broker, |reading| {
            let before = Counters::of(pid)?;
            let outcome = client.run(case, |_, _| reading.load(Relaxed))?;
            Ok((outcome, Counters::of(pid)?.since(before)))
        })?;
        Ok(Sample { outcome, used, beside })
    }

    /// Runs `other` while another connection reads evicted history once, and tells it as long as that
    /// goes on; what came of it, and how many fetches and bytes the reader had. History is not evicted
    /// again meanwhile: that would hold up a core for milliseconds, which no consumer does.
    pub(crate) fn beside_history<T>(
        &self,
        broker: &mut ArmBroker,
        other: impl FnOnce(&AtomicBool) -> io::Result<T>,
    ) -> io::Result<(T, (u64, u64))> {
        let history = Case {
            size: 1 << 20,
            layout: Layout::Contiguous,
            residency: Residency::Cold,
            connections: 1,
            in_flight: 2,
            beside: Beside::Alone,
        };
        let mut reader = self.start(broker, &history)?;
        let reading = &AtomicBool::new(true);
        std::thread::scope(|scope| {
            let read = scope.spawn(move || {
                self.pinning.consume();
                let outcome = reader.give_way().and_then(|()| reader.run(&history, |_, _| true));
                reading.store(false, Relaxed);
                outcome.map(|outcome| (outcome.fetches, outcome.bytes))
            });
            let outcome = other(reading);
            let read = read.join().map_err(|_| io::Error::other("the reader failed"))?;
            Ok((outcome?, read?))
        })
    }

    /// System calls per fetch, from a short run of its own.
    fn syscalls(&self, broker: &mut ArmBroker, case: &Case) -> io::Result<Option<f64>> {
        let alone = Case { beside: Beside::Alone, ..*case };
        if case.residency == Residency::Cold {
            self.restart_cold(broker, self.sizes.end())?;
        }
        let mut client = self.start(broker, &alone)?;
        let fetches = COUNTED_FETCHES
            .min(COUNTED_BYTES / case.size as u64)
            .max(2 * (case.connections * case.in_flight) as u64);
        let pid = broker.running().pid();
        let (outcome, counts) = self.method.count(pid, &[SYSCALLS], self.scratch, || {
            client.run(&alone, |begun, _| begun < fetches)
        })?;
        Ok(counts.map(|counts| counts[0] / outcome.fetches as f64))
    }
}

fn summarise(
    broker: &ArmBroker,
    case: &Case,
    samples: &[Sample],
    syscalls_per_fetch: Option<f64>,
) -> Cell {
    let mut latency: Histogram<u64> = histogram();
    for sample in samples {
        latency.add(&sample.outcome.latency).unwrap();
    }
    let [p50_us, p99_us, p999_us] = percentiles_us(&latency);
    let middle = |figure: &dyn Fn(&Sample) -> f64| median(samples.iter().map(figure).collect());
    let per_fetch = |count: fn(&Counters) -> u64| {
        middle(&|sample| count(&sample.used) as f64 / sample.fetches() as f64)
    };
    Cell {
        arm: broker.arm,
        size: case.size,
        layout: case.layout,
        residency: case.residency,
        connections: case.connections,
        in_flight: case.in_flight,
        beside: case.beside,
        fetches: samples.iter().map(|sample| sample.outcome.fetches).sum(),
        p50_us,
        p99_us,
        p999_us,
        max_us: latency.max() as f64 / 1e3,
        mb_per_s: middle(&Sample::mb_per_s),
        cpu_ms_per_gb: middle(&|sample| sample.used.cpu_ns as f64 * 1e3 / sample.bytes() as f64),
        cpu_us_per_fetch: middle(&Sample::cpu_us_per_fetch),
        syscalls_per_fetch,
        voluntary_switches_per_fetch: per_fetch(|used| used.voluntary),
        involuntary_switches_per_fetch: per_fetch(|used| used.involuntary),
        minor_faults_per_fetch: per_fetch(|used| used.minor_faults),
        major_faults_per_fetch: per_fetch(|used| used.major_faults),
        disk_bytes_per_byte: middle(&|sample| {
            sample.used.disk_bytes as f64 / sample.bytes() as f64
        }),
        rounds: samples.iter().map(Sample::round).collect(),
    }
}

impl Sample {
    /// By everybody; the broker's work cannot be told apart.
    fn fetches(&self) -> u64 {
        self.outcome.fetches + self.beside.0
    }

    fn bytes(&self) -> u64 {
        self.outcome.bytes + self.beside.1
    }

    fn mb_per_s(&self) -> f64 {
        self.outcome.bytes as f64 / 1e6 / self.outcome.elapsed.as_secs_f64()
    }

    fn cpu_us_per_fetch(&self) -> f64 {
        self.used.cpu_ns as f64 / 1e3 / self.fetches() as f64
    }

    fn round(&self) -> Round {
        let [p50_us, p99_us, _] = percentiles_us(&self.outcome.latency);
        Round {
            p50_us,
            p99_us,
            mb_per_s: self.mb_per_s(),
            cpu_us_per_fetch: self.cpu_us_per_fetch(),
        }
    }
}
