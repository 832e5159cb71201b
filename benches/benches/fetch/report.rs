//! Everything one run has to say, and its plots and Markdown.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::answer::answer;
use crate::cell::{Cell, Cells, size};
use crate::copies::CopyRow;
use crate::matrix::{Arm, Beside, Case, Layout, Residency};
use crate::parked::Parked;
use crate::plot::{Bars, Group, Lines};
use crate::produced::Produced;
use crate::reference::{EchoBeside, Reference};
use crate::verdicts::Verdict;

/// `fetch-run.json`: what the cells of `fetch.json` were measured under and beside.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    /// Name and value, in the order to be shown.
    pub(crate) conditions: Vec<(String, String)>,
    pub(crate) reference: Reference,
    pub(crate) parked: Parked,
    pub(crate) produced: Vec<Produced>,
    pub(crate) echo_beside: EchoBeside,
    pub(crate) copies: Vec<CopyRow>,
    pub(crate) verdicts: Vec<Verdict>,
}

/// A table: its head and its rows, as text.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) title: &'static str,
    pub(crate) note: String,
    pub(crate) head: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// The tables of a run, in the order to be shown.
pub(crate) fn tables(run: &Run, cells: Cells<'_>) -> Vec<Table> {
    vec![
        verdict_table(run),
        copy_table(run),
        reference_table(run),
        produced_table(run),
        cell_table(cells),
    ]
}

/// What each path costs over the sizes: the plot that says most.
pub(crate) fn main_plot(cells: Cells<'_>) -> Lines {
    lines(cells, "One long run, hot: broker CPU per GB", "CPU, ms per GB", |cell| {
        cell.cpu_ms_per_gb
    })
}

/// All plots of the page.
pub(crate) fn plots(cells: Cells<'_>) -> Vec<String> {
    let latency =
        lines(cells, "One long run, hot: latency, p50", "latency, us", |cell| cell.p50_us);
    let bars = |title: &str, figure: &str, cases, of| bars(cells, title, figure, cases, of);
    let rate: fn(&Cell) -> f64 = |cell| cell.mb_per_s;
    vec![
        main_plot(cells).svg(false),
        latency.svg(false),
        bars("How records lie: broker CPU per GB", "CPU, ms per GB", layouts(cells), |cell| {
            cell.cpu_ms_per_gb
        }),
        bars("Under load: throughput", "MB/s", loaded(cells), rate),
        bars("Cold: throughput", "MB/s", cold(cells), rate),
        bars("The newest record: latency, p99", "latency, us", newest(cells), |cell| cell.p99_us),
    ]
}

/// A case of each layout, of a size that there is, with its label.
fn layouts(cells: Cells<'_>) -> Vec<(Case, String)> {
    let all = [Layout::Contiguous, Layout::Ten, Layout::Mixed, Layout::Thousand];
    let sizes = [64 << 10, 256 << 10, 1 << 20];
    let plain = |case: &Case| {
        let one = case.connections == 1 && case.in_flight == 1;
        one && case.beside == Beside::Alone && case.residency == Residency::Hot
    };
    let cases: Vec<Case> = cells.cases().into_iter().filter(plain).collect();
    let find = |layout| {
        let of = |size| cases.iter().find(|case| case.layout == layout && case.size == size);
        Some((*sizes.into_iter().find_map(of)?, short(layout).to_owned()))
    };
    all.into_iter().filter_map(find).collect()
}

fn loaded(cells: Cells<'_>) -> Vec<(Case, String)> {
    let wanted = |case: &Case| {
        let loaded = case.connections > 1 || case.in_flight > 1;
        loaded
            && case.residency == Residency::Hot
            && case.layout == Layout::Contiguous
            && case.size >= 64 << 10
    };
    let label = |case: Case| {
        let unit = if case.in_flight > 1 { "deep" } else { "conns" };
        (case, format!("{} {unit}", case.connections.max(case.in_flight)))
    };
    cells.cases().into_iter().filter(wanted).take(6).map(label).collect()
}

fn cold(cells: Cells<'_>) -> Vec<(Case, String)> {
    let label = |case: Case| {
        let many = case.connections > 1;
        let times = if many { format!(" x{}", case.connections) } else { String::new() };
        (case, format!("{}{times}", short(case.layout)))
    };
    let cases = cells.cases().into_iter();
    cases.filter(|case| case.residency == Residency::Cold).map(label).collect()
}

fn newest(cells: Cells<'_>) -> Vec<(Case, String)> {
    let label = |case: Case| {
        let beside = case.beside == Beside::CatchUp;
        (case, if beside { "beside catch-up" } else { "alone" }.to_owned())
    };
    cells.cases().into_iter().filter(|case| case.layout == Layout::Tail).map(label).collect()
}

fn short(layout: Layout) -> &'static str {
    match layout {
        Layout::Contiguous => "one run",
        Layout::Ten => "10 queues",
        Layout::Mixed => "mixed",
        Layout::Thousand => "1,000 queues",
        Layout::Tail => "tail",
    }
}

/// Contiguous, hot, one fetch at a time, over sizes.
fn lines(cells: Cells<'_>, title: &str, figure: &str, of: fn(&Cell) -> f64) -> Lines {
    let on_line = |cell: &&Cell| {
        let case = cell.case();
        let steady = case.residency == Residency::Hot && case.beside == Beside::Alone;
        let one = case.connections == 1 && case.in_flight == 1;
        steady && one && case.layout == Layout::Contiguous
    };
    let series = Arm::ALL.map(|arm| {
        let of_arm = cells.0.iter().filter(on_line).filter(|cell| cell.arm == arm);
        let mut points: Vec<(usize, f64)> = of_arm.map(|cell| (cell.size, of(cell))).collect();
        points.sort_by_key(|point| point.0);
        (arm, points)
    });
    Lines { title: title.into(), figure: figure.into(), series: series.into() }
}

fn bars(
    cells: Cells<'_>,
    title: &str,
    figure: &str,
    cases: Vec<(Case, String)>,
    of: fn(&Cell) -> f64,
) -> String {
    let group = |(case, label): (Case, String)| {
        let bars = cells.at(case).map(|cell| (cell.arm, of(cell))).collect();
        Group { labels: [label, size(case.size)], bars }
    };
    let groups = cases.into_iter().map(group).collect();
    Bars { title: title.into(), figure: figure.into(), groups }.svg()
}

fn verdict_table(run: &Run) -> Table {
    let row = |verdict: &Verdict| {
        let reached = if verdict.reached { "reached" } else { "NOT reached" };
        vec![verdict.mark.clone(), verdict.measured.clone(), reached.into()]
    };
    Table {
        title: "Marks",
        note: "Ratios within this run.".into(),
        head: vec!["mark", "measured", ""],
        rows: run.verdicts.iter().map(row).collect(),
    }
}

fn copy_table(run: &Run) -> Table {
    let count = |count: Option<f64>| count.map_or("-".into(), |count| format!("{count:.0}"));
    let share = |share: Option<f64>| share.map_or("-".into(), |share| format!("{share:.2}"));
    let row = |row: &CopyRow| {
        vec![
            format!("{}, {}", row.arm.name(), row.case.describe()),
            count(row.syscalls),
            count(row.context_switches),
            share(row.read_per_byte),
            share(row.written_per_byte),
            share(row.referenced_per_byte),
            count(row.page_cache_lookups),
            count(row.pages_mapped),
            row.theory().into(),
        ]
    };
    let mut note = "For each GB (10^9 bytes) of records; hot. System calls, context switches, page-cache \
                lookups (filemap:mm_filemap_get_pages, up to 15 folios each) and mappings \
                (mm_filemap_map_pages and mm_filemap_fault) counted by perf stat in all threads of the \
                broker. Bytes are what the calls returned under strace: those that read segments are \
                copied by the kernel from page cache to user memory, those written to sockets from \
                user memory or mapping to socket buffers, those of sendfile and splice are not copied. \
                Copies within the process are not seen by either; theory names them."
        .to_owned();
    let lacks = |what: fn(&CopyRow) -> Option<f64>, beside: fn(&CopyRow) -> Option<f64>| {
        run.copies.iter().any(|row| what(row).is_none() && beside(row).is_some())
    };
    if lacks(|row| row.context_switches, |row| row.syscalls) {
        note += " Here strace -c counted the system calls, and nothing could count the rest.";
    } else if lacks(|row| row.page_cache_lookups, |row| row.context_switches) {
        note += " This kernel lacks the events of page-cache lookups and mappings.";
    }
    Table {
        title: "Copies",
        note,
        head: vec![
            "path",
            "system calls",
            "context switches",
            "read, bytes per byte",
            "written, bytes per byte",
            "by reference, bytes per byte",
            "page-cache lookups",
            "mappings",
            "theory",
        ],
        rows: run.copies.iter().map(row).collect(),
    }
}

fn reference_table(run: &Run) -> Table {
    let Reference {
        sendfile_cpu_ms_per_gb,
        sendfile_mb_per_s,
        read_write_cpu_ms_per_gb,
        read_write_mb_per_s,
        recv_cpu_ms_per_gb,
        memcpy_mb_per_s,
        epoll_echo_cpu_us,
        epoll_echo_p50_us,
        tokio_echo_cpu_us,
        tokio_echo_p50_us,
    } = run.reference;
    let Parked { fetched_p50_us, fetched_p99_us } = run.parked;
    let row = |what: &str, figure: String| vec![what.to_owned(), figure];
    let stream = |cpu: f64, rate: f64| format!("{cpu:.0} ms/GB, {rate:.0} MB/s");
    let echo = |cpu: f64, p50: f64| format!("{cpu:.1} us CPU, p50 {p50:.0} us");
    let trips = |[p50, p99, _]: [f64; 3]| format!("p50 {p50:.0}, p99 {p99:.0} us");
    let EchoBeside { alone_us, beside_us } = run.echo_beside;
    Table {
        title: "The machine without a broker",
        note: "In the same run. Server threads' own CPU time; one connection.".into(),
        head: vec!["what", "measured"],
        rows: vec![
            row("bare sendfile loop", stream(sendfile_cpu_ms_per_gb, sendfile_mb_per_s)),
            row("bare read + write loop", stream(read_write_cpu_ms_per_gb, read_write_mb_per_s)),
            row("bare recv, copying", format!("{recv_cpu_ms_per_gb:.0} ms/GB")),
            row("memcpy, not in cache", format!("{memcpy_mb_per_s:.0} MB/s")),
            row("epoll echo, a round trip", echo(epoll_echo_cpu_us, epoll_echo_p50_us)),
            row("tokio echo, a round trip", echo(tokio_echo_cpu_us, tokio_echo_p50_us)),
            row("epoll echo on the core of an idle broker", trips(alone_us)),
            row(
                "epoll echo on the core of a broker that serves a catch-up reader",
                trips(beside_us),
            ),
            row(
                "produced to a parked fetch answered",
                format!("p50 {fetched_p50_us:.0}, p99 {fetched_p99_us:.0} us"),
            ),
        ],
    }
}

fn produced_table(run: &Run) -> Table {
    let row = |arm: Arm, beside: &str, percentiles: [f64; 3]| {
        let mut row = vec![arm.name().to_owned(), beside.to_owned()];
        row.extend(percentiles.map(|us| format!("{us:.0}")));
        row
    };
    let rows = run.produced.iter().flat_map(|of| {
        [row(of.arm, "alone", of.alone_us), row(of.arm, "beside a catch-up reader", of.beside_us)]
    });
    Table {
        title: "One record produced",
        note: "From before it is sent until it is acknowledged, durability write, one after the other."
            .into(),
        head: vec!["arm", "beside", "p50 us", "p99 us", "p99.9 us"],
        rows: rows.collect(),
    }
}

fn cell_table(cells: Cells<'_>) -> Table {
    let row = |cell: &Cell| {
        let figure = |figure: f64| {
            if figure >= 100.0 { format!("{figure:.0}") } else { format!("{figure:.2}") }
        };
        vec![
            cell.case().describe(),
            cell.arm.name().into(),
            format!("{:.1}", cell.p50_us),
            format!("{:.1}", cell.p99_us),
            format!("{:.0}", cell.p999_us),
            format!("{:.0}", cell.max_us),
            format!("{:.0}", cell.mb_per_s),
            format!("{:.0}", cell.cpu_ms_per_gb),
            figure(cell.cpu_us_per_fetch),
            cell.syscalls_per_fetch.map_or("-".into(), figure),
            figure(cell.voluntary_switches_per_fetch),
            figure(cell.involuntary_switches_per_fetch),
            figure(cell.minor_faults_per_fetch),
            figure(cell.major_faults_per_fetch),
            format!("{:.2}", cell.disk_bytes_per_byte),
        ]
    };
    Table {
        title: "Every cell",
        note:
            "Percentiles over all rounds, other figures the rounds' medians. CPU, calls, switches \
               and faults are the broker's. Beside a catch-up reader they are of all that it does, \
               over the fetches of both, whose mixture differs between the arms; but calls are \
               counted without that reader."
                .into(),
        head: vec![
            "case",
            "arm",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "max us",
            "MB/s",
            "CPU ms/GB",
            "CPU us/fetch",
            "calls/fetch",
            "sleeps/fetch",
            "preemptions/fetch",
            "minor faults/fetch",
            "major faults/fetch",
            "disk bytes/byte",
        ],
        rows: cells.0.iter().map(row).collect(),
    }
}

/// The whole report for reading as text.
pub(crate) fn markdown(run: &Run, cells: Cells<'_>) -> String {
    let mut text = String::from("# How a fetch leaves\n\n");
    for (name, value) in &run.conditions {
        let _ = writeln!(text, "- {name}: {value}");
    }
    for table in tables(run, cells) {
        let _ = writeln!(text, "\n## {}\n\n{}\n", table.title, table.note);
        let _ = writeln!(text, "| {} |", table.head.join(" | "));
        let _ = writeln!(text, "|{}", "---|".repeat(table.head.len()));
        for row in &table.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }
    let _ = writeln!(text, "\n## When is which path better?\n");
    for sentence in answer(cells) {
        let _ = writeln!(text, "- {sentence}");
    }
    text
}
