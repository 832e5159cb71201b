//! File systems of a few MiB, to be filled or to have their power cut.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

/// How often mounting and unmounting are tried: another process may have taken the loop device in
/// between, or may just be letting go of a file.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(20);

/// What a disk is formatted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4 on a loop device.
    Ext4,
    /// xfs on a loop device. Smaller than 300 MiB it cannot be made.
    Xfs,
    /// In memory.
    Tmpfs,
}

impl FileSystem {
    /// By the name `mount` knows it by.
    pub fn named(name: &str) -> Option<FileSystem> {
        [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Tmpfs]
            .into_iter()
            .find(|s| s.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Tmpfs => "tmpfs",
        }
    }
}

/// A mounted file system of its own; gone when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    system: FileSystem,
    mib: u64,
    folder: TempDir,
}

impl SmallDisk {
    /// Makes, formats and mounts one. Fails, with the reason, where that is not allowed or its tools
    /// are missing.
    pub fn make(system: FileSystem, mib: u64) -> Result<SmallDisk, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let disk = SmallDisk { system, mib, folder };
        fs::create_dir(disk.path()).map_err(|error| error.to_string())?;
        disk.format()?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Unmounts it and mounts it again, as after a power cut. Its content is that of its disk.
    pub fn remount(&self) -> Result<(), String> {
        self.unmount()?;
        self.mount()
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn format(&self) -> Result<(), String> {
        let options: &[&str] = match self.system {
            FileSystem::Ext4 => &["-q", "-F", "-E", "nodiscard"],
            FileSystem::Xfs => &["-q", "-f", "-K"],
            FileSystem::Tmpfs => return Ok(()),
        };
        let image = File::create(self.image()).and_then(|image| image.set_len(self.mib << 20));
        image.map_err(|error| format!("making an image: {error}"))?;
        // Where a user's path does not have the system's tools.
        let tool = format!("mkfs.{}", self.system.name());
        let tool = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(&tool));
        let tool = tool.iter().find(|tool| tool.exists()).unwrap_or(&tool[0]);
        run(Command::new(tool).args(options).arg(self.image()))
    }

    fn mount(&self) -> Result<(), String> {
        let mut command = Command::new("mount");
        command.args(["-t", self.system.name(), "-o"]);
        match self.system {
            // The loop device goes with the mount.
            FileSystem::Ext4 | FileSystem::Xfs => {
                command.arg("loop,noatime").arg(self.image());
            }
            FileSystem::Tmpfs => {
                command.arg(format!("size={}m", self.mib)).arg("longwire");
            }
        }
        try_again(command.arg(self.path()))
    }

    fn unmount(&self) -> Result<(), String> {
        try_again(Command::new("umount").arg(self.path()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            let _ = run(Command::new("umount").arg("--lazy").arg(self.path()));
        }
    }
}

fn try_again(command: &mut Command) -> Result<(), String> {
    let mut tries = 1;
    loop {
        match run(command) {
            // What is not mounted or not allowed stays so.
            Err(problem) if tries < TRIES && may_pass(&problem) => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn may_pass(problem: &str) -> bool {
    ["busy", "loop device", "already mounted"].iter().any(|sign| problem.contains(sign))
        && !problem.contains("ermission")
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name} cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
