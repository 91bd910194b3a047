//! Ends the servers that this process started and removes their data when this process ends.
//!
//! `Drop` does not run when a test process is killed, nor for a `static` when it exits. Therefore a small `sh` runs in its own process
//! group and reads from a pipe which groups and directories it must clean up. The end of the pipe means that this process is gone.
//! (`PR_SET_PDEATHSIG` does not work here: it acts when the *thread* that started the child ends.)

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak},
};

use rustix::process::{Pid, Signal, WaitOptions};

use crate::Error;

static REAPER: Mutex<Weak<Reaper>> = Mutex::new(Weak::new());

/// The reaper of this process. It lives while an `Arc` to it exists.
pub(crate) struct Reaper {
    shell: Mutex<Child>,
    entries: Mutex<Entries>,
}

struct Entries {
    input: Option<ChildStdin>,
    groups: Vec<Pid>,
    directories: Vec<PathBuf>,
    /// The directories whose logs a panic has already announced: a property test panics many times.
    announced: Vec<PathBuf>,
}

impl Reaper {
    /// Returns the reaper of this process, and starts it if necessary.
    pub(crate) fn get() -> Result<Arc<Self>, Error> {
        let mut current = lock(&REAPER);
        if let Some(reaper) = current.upgrade() {
            return Ok(reaper);
        }
        let mut shell = Command::new("sh")
            .args(["-c", include_str!("reaper.sh")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Error::io("start `sh`"))?;
        let input = shell.stdin.take();
        let reaper = Arc::new(Self {
            shell: Mutex::new(shell),
            entries: Mutex::new(Entries { input, groups: Vec::new(), directories: Vec::new(), announced: Vec::new() }),
        });
        *current = Arc::downgrade(&reaper);
        keep_logs_after_a_panic();
        Ok(reaper)
    }

    /// Ends the process group of `leader` when this process ends.
    pub(crate) fn watch_group(&self, leader: Pid) {
        let mut entries = lock(&self.entries);
        if entries.input.is_none() {
            // The group was started during `end_everything`.
            kill(leader);
        }
        entries.groups.push(leader);
        entries.send(&group(leader));
    }

    /// Forgets a group that has ended: the system may reuse its number.
    pub(crate) fn forget_group(&self, leader: Pid) {
        let mut entries = lock(&self.entries);
        entries.groups.retain(|group| *group != leader);
        entries.send(&format!("forget {}", group(leader)));
    }

    /// Removes the directory when this process ends, except for its `logs` if a thread panicked.
    pub(crate) fn watch_directory(&self, path: &Path) {
        let mut entries = lock(&self.entries);
        entries.directories.push(path.to_owned());
        entries.send(&format!("directory {}", path.display()));
    }

    /// Removes the control groups with this name, one in each hierarchy, when this process ends.
    pub(crate) fn watch_cgroups(&self, name: &str) {
        lock(&self.entries).send(&format!("cgroups {name}"));
    }

    /// Forgets a directory that has been removed or must stay.
    pub(crate) fn forget_directory(&self, path: &Path) {
        let mut entries = lock(&self.entries);
        entries.directories.retain(|directory| directory != path);
        entries.send(&format!("forget directory {}", path.display()));
    }
}

fn group(leader: Pid) -> String {
    format!("group {}", leader.as_raw_nonzero())
}

impl Entries {
    /// Sends a line to the shell. A write fails only if the shell was killed, which cannot be repaired.
    fn send(&mut self, line: &str) {
        if let Some(input) = &mut self.input {
            let _ = writeln!(input, "{line}");
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        lock(&self.entries).input = None;
        let _ = lock(&self.shell).wait();
    }
}

/// Kills every process that this crate has started, waits until they are gone, and removes their data. A signal handler calls it before
/// it exits the process. Processes that other threads start meanwhile are killed immediately.
pub fn end_everything() {
    let Some(reaper) = lock(&REAPER).upgrade() else { return };
    let mut entries = lock(&reaper.entries);
    let groups = std::mem::take(&mut entries.groups);
    groups.iter().copied().for_each(kill);
    for leader in groups {
        let _ = rustix::process::waitpid(Some(leader), WaitOptions::empty());
    }
    entries.input = None;
    drop(entries);
    let _ = lock(&reaper.shell).wait();
}

fn kill(leader: Pid) {
    let _ = rustix::process::kill_process_group(leader, Signal::KILL);
}

/// A `static` is never dropped, and its logs must be kept if any test of the process failed.
fn keep_logs_after_a_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            previous(panic);
            // `try_lock`, because this thread may hold a lock while it panics.
            let reaper = REAPER.try_lock().ok().and_then(|reaper| reaper.upgrade());
            if let Some(reaper) = reaper
                && let Ok(mut entries) = reaper.entries.try_lock()
            {
                entries.send("keep-logs");
                for directory in entries.directories.clone() {
                    if !entries.announced.contains(&directory) {
                        eprintln!("The logs of the control plane stay in {}", directory.join("logs").display());
                        entries.announced.push(directory);
                    }
                }
            }
        }));
    });
}

/// The locks of this crate guard plain values that are always consistent, so a poisoned lock is safe to use.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
