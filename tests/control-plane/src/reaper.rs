//! Sees to it that nothing outlives this process: neither the servers that it started nor their data.
//!
//! A `Drop` does not run when a test process is killed, or at its end for what stands in a `static`. So one small `sh` stands by,
//! in a process group of its own, and reads from a pipe what there is to clean up; that the pipe ends is how it learns that
//! this process is gone. (`PR_SET_PDEATHSIG` would not do: it acts when the *thread* ends that started the child.)

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

/// The one of this process, there as long as somebody holds it.
pub(crate) struct Reaper {
    shell: Mutex<Child>,
    entries: Mutex<Entries>,
}

struct Entries {
    input: Option<ChildStdin>,
    groups: Vec<Pid>,
    directories: Vec<PathBuf>,
    /// Those whose logs a panic has told of already: a property test panics many times.
    announced: Vec<PathBuf>,
}

impl Reaper {
    /// The reaper of this process, started if there is none.
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

    /// From now on the group of processes that `leader` leads ends with this process.
    pub(crate) fn watch_group(&self, leader: Pid) {
        let mut entries = lock(&self.entries);
        if entries.input.is_none() {
            // Started while everything was being ended.
            kill(leader);
        }
        entries.groups.push(leader);
        entries.tell(&group(leader));
    }

    /// The group is gone: its number may soon be somebody else's.
    pub(crate) fn forget_group(&self, leader: Pid) {
        let mut entries = lock(&self.entries);
        entries.groups.retain(|group| *group != leader);
        entries.tell(&format!("forget {}", group(leader)));
    }

    /// From now on the directory is removed with this process, but for its `logs` if a thread of it panicked.
    pub(crate) fn watch_directory(&self, path: &Path) {
        let mut entries = lock(&self.entries);
        entries.directories.push(path.to_owned());
        entries.tell(&format!("directory {}", path.display()));
    }

    /// From now on the control groups of this name, one in each hierarchy, are removed with this process.
    pub(crate) fn watch_cgroups(&self, name: &str) {
        lock(&self.entries).tell(&format!("cgroups {name}"));
    }

    /// The directory is gone, or is to stay.
    pub(crate) fn forget_directory(&self, path: &Path) {
        let mut entries = lock(&self.entries);
        entries.directories.retain(|directory| directory != path);
        entries.tell(&format!("forget directory {}", path.display()));
    }
}

fn group(leader: Pid) -> String {
    format!("group {}", leader.as_raw_nonzero())
}

impl Entries {
    /// A write fails only when the shell was killed; then there is nobody left to tell.
    fn tell(&mut self, line: &str) {
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

/// Kills every process that this crate has started, waits until they are gone, and removes their data: for the handler of a
/// signal, which ends the process right after. What another thread still starts is killed at once.
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

/// What stands in a `static` is never dropped, and its logs are wanted if any test of the process failed.
fn keep_logs_after_a_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            previous(panic);
            // `try_lock`: the panic may have come while this very thread held a lock.
            let reaper = REAPER.try_lock().ok().and_then(|reaper| reaper.upgrade());
            if let Some(reaper) = reaper
                && let Ok(mut entries) = reaper.entries.try_lock()
            {
                entries.tell("keep-logs");
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

/// The locks of this crate guard plain values that are whole at any time, so a panic elsewhere does not spoil them.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
