//! The copy table: what each path does for a GB of records, as counted.

use std::io;

use longwire_tests::strace::{Call, Strace};
use serde::{Deserialize, Serialize};

use crate::events::{FAULTS, LOOKUPS, MAPPINGS, SWITCHES, SYSCALLS};
use crate::matrix::{Arm, Case, Layout, SCATTERED, STREAM};
use crate::measure::Plan;
use crate::store::ArmBroker;

/// Most bytes fetched while they are counted.
const COUNTED_BYTES: u64 = 64 << 20;
/// Under strace every call is slow.
const TRACED_BYTES: u64 = 8 << 20;

/// One arm at one case. Counts are for 10^9 bytes of records; `None` where they cannot be had.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CopyRow {
    pub(crate) arm: Arm,
    pub(crate) case: Case,
    pub(crate) syscalls: Option<f64>,
    pub(crate) context_switches: Option<f64>,
    /// Lookups of reads, `sendfile` and `splice`, each of up to 15 folios; `None` also on a kernel that
    /// does not tell.
    pub(crate) page_cache_lookups: Option<f64>,
    /// Entries made in page tables, up to 16 pages each, and faults in mapped files.
    pub(crate) pages_mapped: Option<f64>,
    /// Bytes, for each byte of records, that the kernel copied out of the page cache: what the
    /// calls that read segments returned.
    pub(crate) read_per_byte: Option<f64>,
    /// Bytes that the kernel copied into socket buffers: what the calls that write to sockets
    /// returned.
    pub(crate) written_per_byte: Option<f64>,
    /// Bytes sent without a copy: what `sendfile` and `splice` to a socket returned.
    pub(crate) referenced_per_byte: Option<f64>,
}

impl CopyRow {
    /// What the path should do.
    pub(crate) fn theory(&self) -> &'static str {
        let scattered = self.case.layout == Layout::Thousand;
        match self.arm {
            Arm::Buffered => "2 copies: page cache to buffer, buffer to socket",
            Arm::Mmap => "1 copy: mapping to socket",
            Arm::Sendfile if scattered => "no copy, one call for each record",
            Arm::Sendfile => "no copy, one call for each MiB",
            Arm::Splice if scattered => "no copy, two calls for each record",
            Arm::Splice => "no copy, two calls for each 512 KiB",
            Arm::Adaptive if scattered => {
                "2 copies, one of them in the process from mapping to buffer, in one call"
            }
            Arm::Adaptive => "as sendfile",
        }
    }
}

/// Counts for every arm: one long run, and scattered records.
pub(crate) fn measure(plan: &Plan<'_>, arms: &mut [ArmBroker]) -> io::Result<Vec<CopyRow>> {
    let mut rows = Vec::new();
    for case in [STREAM, SCATTERED] {
        for broker in arms.iter_mut() {
            rows.push(row(plan, broker, &case)?);
        }
    }
    Ok(rows)
}

fn row(plan: &Plan<'_>, broker: &mut ArmBroker, case: &Case) -> io::Result<CopyRow> {
    let mut client = plan.start(broker, case)?;
    let pid = broker.running().pid();
    let fetches = |bytes: u64| bytes / case.size as u64;
    client.run(case, |begun, _| begun < 8)?;
    let events = [SYSCALLS, SWITCHES, LOOKUPS, MAPPINGS, FAULTS];
    let mut counted = |events: &[&str]| {
        plan.method.count(pid, events, plan.scratch, || {
            client.run(case, |begun, _| begun < fetches(COUNTED_BYTES))
        })
    };
    // All or none are counted: older kernels have the first two only, and strace knows the first.
    let (mut outcome, mut counts) = counted(&events)?;
    for known in [2, 1] {
        if counts.is_none() {
            (outcome, counts) = counted(&events[..known])?;
        }
    }
    let gigabytes = outcome.bytes as f64 / 1e9;
    let count = |at: usize| counts.as_ref()?.get(at).map(|count| count / gigabytes);

    let strace = Strace::attach(pid, plan.scratch.join("traced"));
    let outcome = client.run(case, |begun, _| begun < fetches(TRACED_BYTES))?;
    let calls = strace.map(Strace::detach);
    let moved = |wanted: fn(&Call) -> bool| {
        let calls = calls.as_ref()?.iter().filter(|call| wanted(call));
        let bytes: i64 = calls.map(|call| call.returned.max(0)).sum();
        Some(bytes as f64 / outcome.bytes as f64)
    };
    Ok(CopyRow {
        arm: broker.arm,
        case: *case,
        syscalls: count(0),
        context_switches: count(1),
        page_cache_lookups: count(2),
        pages_mapped: count(3).zip(count(4)).map(|(mapped, faults)| mapped + faults),
        read_per_byte: moved(|call| call.name.contains("read") && call.file.contains("commitlog")),
        written_per_byte: moved(|call| {
            let writes = call.name != "sendfile"
                && (call.name.contains("send") || call.name.contains("write"));
            writes && call.file.starts_with("socket")
        }),
        referenced_per_byte: moved(|call| {
            call.name == "sendfile" || (call.name == "splice" && call.file.starts_with("pipe"))
        }),
    })
}
