//! Faults of the system under a real program: a library that is loaded before the C library's
//! (`LD_PRELOAD`) and is told by a small shared file what to do.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// The switches in the shared file, in its order.
#[derive(Debug, Clone, Copy)]
enum Switch {
    ClockShiftSeconds,
    WriteErrno,
    SyncErrno,
    KillAt,
    Calls,
}

/// Where a program kills itself, as `kill -9` would, at a file below the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Killed {
    /// Nothing has been written.
    BeforeWrite = 1,
    /// The system has it, the disk may not.
    BeforeSync,
    /// It is durable, and nobody has been told.
    AfterSync,
}

/// A compiled shim, and its switches.
#[derive(Debug)]
pub struct Shim {
    folder: TempDir,
    switches: File,
}

impl Shim {
    /// Compiles it, with all switches off.
    ///
    /// # Panics
    /// Without a C compiler, which the project needs anyway.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("shim.c");
        std::fs::write(&source, include_str!("shim.c")).expect("written");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut compile = Command::new(compiler);
        compile.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]);
        compile.arg(folder.path().join("shim.so")).arg(&source).arg("-ldl");
        assert!(compile.status().expect("a C compiler runs").success(), "shim.c does not compile");
        let path = folder.path().join("switches");
        let mut options = File::options();
        let switches = options.read(true).write(true).create_new(true).open(path);
        let switches = switches.expect("created");
        switches.set_len(64).expect("sized");
        Self { folder, switches }
    }

    /// Has `command` run with it; `disk` is the folder whose files can be made to fail.
    pub fn put_under(&self, command: &mut Command, disk: Option<&PathBuf>) {
        command.env("LD_PRELOAD", self.folder.path().join("shim.so"));
        command.env("FAULT_SWITCHES", self.folder.path().join("switches"));
        if let Some(disk) = disk {
            command.env("FAULT_DISK", disk);
        }
    }

    /// Shifts the wall clock, and no other clock.
    pub fn shift_wall_clock(&self, seconds: i64) {
        self.set(Switch::ClockShiftSeconds, seconds);
    }

    /// Writes below the folder fail with this error number; 0: they do not.
    pub fn fail_writes(&self, errno: i32) {
        self.set(Switch::WriteErrno, errno.into());
    }

    /// Syncs below the folder fail with this error number; 0: they do not.
    pub fn fail_syncs(&self, errno: i32) {
        self.set(Switch::SyncErrno, errno.into());
    }

    /// Kills the program at the next such place; `None`: it lives.
    pub fn kill(&self, at: Option<Killed>) {
        self.set(Switch::KillAt, at.map_or(0, |at| at as i64));
    }

    /// Calls that a switch has changed so far.
    pub fn n_changed(&self) -> i64 {
        let mut bytes = [0; 8];
        self.switches.read_exact_at(&mut bytes, Switch::Calls as u64 * 8).expect("readable");
        i64::from_le_bytes(bytes)
    }

    fn set(&self, switch: Switch, value: i64) {
        self.switches.write_all_at(&value.to_le_bytes(), switch as u64 * 8).expect("writable");
    }
}

impl Default for Shim {
    fn default() -> Self {
        Self::new()
    }
}
