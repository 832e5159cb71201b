//! Whether a report on disk is complete. It never looks at how large a figure is.

use std::fs;
use std::path::Path;

use crate::cell::Cell;
use crate::matrix::{Arm, Case};
use crate::report::Run;

/// Reads the files back; what is missing or broken, if anything.
pub(crate) fn check(folder: &Path, cases: &[Case]) -> Result<(), String> {
    let read = |name: &str| {
        fs::read_to_string(folder.join(name)).map_err(|error| format!("{name}: {error}"))
    };
    // Every field must be there, and no other: the types say so.
    let cells: Vec<Cell> = serde_json::from_str(&read("fetch.json")?)
        .map_err(|error| format!("fetch.json: {error}"))?;
    let run: Run = serde_json::from_str(&read("fetch-run.json")?)
        .map_err(|error| format!("fetch-run.json: {error}"))?;
    for case in cases {
        for arm in Arm::ALL {
            let found = cells.iter().filter(|cell| cell.arm == arm && cell.case() == *case);
            let [cell] = found.collect::<Vec<_>>()[..] else {
                return Err(format!("not one cell for {} at {}", arm.name(), case.describe()));
            };
            check_cell(cell)?;
        }
    }
    if cells.len() != cases.len() * Arm::ALL.len() {
        return Err(format!("{} cells for {} cases", cells.len(), cases.len()));
    }
    if run.conditions.iter().any(|(_, value)| value.is_empty() || value == "?") {
        return Err(format!("a condition is unknown: {:?}", run.conditions));
    }
    if run.verdicts.is_empty() || run.verdicts.iter().any(|v| v.measured == "not measured") {
        return Err(format!("a verdict has no figure: {:?}", run.verdicts));
    }
    if run.copies.len() != 2 * Arm::ALL.len() {
        return Err(format!("the copy table has {} rows", run.copies.len()));
    }
    let page = read("fetch.html")?;
    let plots = page.matches("<svg").count();
    if plots < 6 {
        return Err(format!("fetch.html has {plots} plots"));
    }
    for name in ["fetch.html", "fetch.svg"] {
        let page = read(name)?;
        well_formed(&page).map_err(|error| format!("{name}: {error}"))?;
        self_contained(&page).map_err(|error| format!("{name}: {error}"))?;
    }
    let text = read("fetch.md")?;
    let rows = text.lines().filter(|line| line.starts_with("| ")).count();
    if rows < cells.len() {
        return Err(format!("fetch.md has {rows} rows for {} cells", cells.len()));
    }
    Ok(())
}

fn check_cell(cell: &Cell) -> Result<(), String> {
    let figures = [
        cell.p50_us,
        cell.p99_us,
        cell.p999_us,
        cell.max_us,
        cell.mb_per_s,
        cell.cpu_ms_per_gb,
        cell.cpu_us_per_fetch,
    ];
    let counted = cell.syscalls_per_fetch.is_none_or(|calls| calls > 0.0);
    let measured = figures.iter().all(|figure| figure.is_finite() && *figure > 0.0);
    if measured && counted && cell.fetches > 0 && !cell.rounds.is_empty() {
        Ok(())
    } else {
        Err(format!("{} has no figure at {}", cell.arm.name(), cell.case().describe()))
    }
}

/// Every element is closed, in order, and no `<`, `>` or `&` stands for itself.
fn well_formed(page: &str) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap_or(page);
    while let Some(at) = rest.find('<') {
        // Style sheets may have `>`; ours have none.
        let text = &rest[..at];
        if text.contains('>') {
            return Err(format!("a stray > in {text:?}"));
        }
        for entity in text.split('&').skip(1) {
            if !["lt;", "gt;", "amp;"].iter().any(|known| entity.starts_with(known)) {
                return Err(format!("a stray & in {text:?}"));
            }
        }
        let end = rest[at..].find('>').ok_or("a tag that does not end")? + at;
        let tag = &rest[at + 1..end];
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default();
        if !tag.matches('"').count().is_multiple_of(2) {
            return Err(format!("an attribute of <{tag}> does not end"));
        }
        if tag.starts_with('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes nothing"));
            }
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    if open.is_empty() { Ok(()) } else { Err(format!("never closed: {open:?}")) }
}

/// Nothing is loaded from anywhere.
fn self_contained(page: &str) -> Result<(), String> {
    let loads = [" src=", " href=", "url(", "@import", "<script", "<link", "<iframe"];
    match loads.iter().find(|load| page.contains(**load)) {
        Some(load) => Err(format!("it loads something: {load}")),
        None => Ok(()),
    }
}
