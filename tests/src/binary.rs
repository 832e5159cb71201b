//! Where the binaries under test are.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// Names another `longwire-broker` to test, such as one from another build.
const BROKER_VARIABLE: &str = "LONGWIRE_TEST_BROKER";

/// The `longwire-broker` of the profile this test was built with.
///
/// `cargo test --workspace` has built it; where only this package is tested it is built now, if it is
/// missing or older than a source file, which takes a while and is said.
///
/// # Panics
///
/// If it cannot be built.
pub fn broker_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match env::var_os(BROKER_VARIABLE) {
        Some(path) => path.into(),
        None => {
            let path = profile_folder().join("longwire-broker");
            if !is_fresh(&path) {
                // Not by a macro, whose words a passing test does not show: see `skip`.
                let why = "building longwire-broker: it is missing or older than a source file";
                let _ = writeln!(std::io::stderr(), "{why}");
                build(&path);
            }
            path
        }
    })
}

/// Has cargo see to it that [`broker_binary`] is of these sources and of this profile as it is now,
/// unless another one is named. For who measures it: the time it was built at tells nothing of how.
///
/// # Panics
///
/// If it cannot be built.
pub fn build_broker() {
    if env::var_os(BROKER_VARIABLE).is_none() {
        build(&profile_folder().join("longwire-broker"));
    }
}

/// The `torture` binary of this package and profile, which cargo builds before any suite of it.
pub fn torture_binary() -> PathBuf {
    profile_folder().join("torture")
}

/// `target/debug` or `target/release`, above the folder of the running test.
fn profile_folder() -> PathBuf {
    let test = env::current_exe().expect("the path of this process");
    let folder = test.parent().expect("a file is in a folder");
    match folder.parent() {
        Some(above) if folder.ends_with("deps") => above.to_owned(),
        _ => folder.to_owned(),
    }
}

/// Whether no source that cargo lists for the binary is newer than it.
fn is_fresh(binary: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    let (Ok(built), Ok(list)) = (changed(binary), fs::read_to_string(binary.with_extension("d")))
    else {
        return false;
    };
    let sources = list.split_once(": ").map_or("", |(_, sources)| sources);
    let unchanged =
        |source: &str| changed(Path::new(source)).is_ok_and(|changed: SystemTime| changed <= built);
    sources.split_whitespace().all(unchanged)
}

fn build(binary: &Path) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("CARGO_TARGET_DIR");
    command.args(["build", "-p", "longwire-broker", "--bin", "longwire-broker", "--target-dir"]);
    let profile = binary.parent().expect("a profile's folder");
    command.arg(profile.parent().expect("the target folder"));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().expect("cargo can be started");
    assert!(status.success(), "the broker cannot be built: {status}");
}
