//! The first thing a newcomer runs.

use std::fs;

use crate::broker::{failure, longwire};

#[test]
fn every_line_of_a_folder_is_verified_and_measured() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::create_dir(folder.path().join("target")).unwrap();
    let lines: String = (0..5_000).map(|n| format!("line {n}\n")).collect();
    fs::write(folder.path().join("text"), &lines).unwrap();
    fs::write(folder.path().join("sub/binary"), b"\xff\0\n\n\r\nend").unwrap();
    fs::write(folder.path().join("sub/long"), vec![b'x'; (4 << 20) + 7]).unwrap();
    fs::write(folder.path().join("target/left-out"), "not mine\n").unwrap();

    let output = longwire().arg("quickstart").arg(folder.path()).arg("--json").output().unwrap();
    let (code, said) = failure(&output);
    assert_eq!((code, said.as_str()), (0, ""));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verified"], true, "{report}");
    assert_eq!(report["messages"], 5_000 + 4 + 2);
    let bytes = lines.len() - 5_000 + 6 + (4 << 20) + 7;
    assert_eq!(report["bytes"], bytes);
    assert_eq!((&report["files"], &report["line_cuts"]), (&3.into(), &1.into()));
    for key in ["produce_mb_per_s", "consume_mb_per_s"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{report}");
    }
    for key in ["p50", "p99", "p999"] {
        assert!(report["e2e_us"][key].as_f64().unwrap() > 0.0, "{report}");
    }
    let sent: u64 =
        report["transfer_bytes"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert!(sent > bytes as u64, "{report}");
    #[cfg(target_os = "linux")]
    assert!(report["peak_rss_mib"].as_f64().unwrap() < 300.0, "{report}");
}

#[test]
fn table_says_that_all_is_well_and_the_temporary_folder_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "one\ntwo\n").unwrap();
    let mut command = longwire();
    let output = command
        .arg("quickstart")
        .arg(folder.path())
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.contains("verified: every line came back"), "{table}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn what_cannot_be_read_is_not_verified() {
    // Can be opened, and not read from its beginning.
    let output = longwire().args(["quickstart", "/proc/self/mem", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verified"], false);
    assert!(report["problems"][0].as_str().unwrap().contains("/proc/self/mem"), "{report}");
}

#[test]
fn path_that_is_not_there_or_empty_is_a_usage_error() {
    let empty = tempfile::tempdir().unwrap();
    for path in [empty.path().to_owned(), empty.path().join("none")] {
        let (code, said) = failure(&longwire().arg("quickstart").arg(&path).output().unwrap());
        assert!(code == 2 && said.lines().count() == 1, "{code}: {said}");
    }
}
