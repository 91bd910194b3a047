//! A directory for one control plane. It is removed at the end, except for its logs after a failure.

use std::{
    env, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{Error, reaper::Reaper};

/// A directory that is removed on drop, or by the reaper.
pub struct DataDirectory {
    path: PathBuf,
    keep_logs: AtomicBool,
    reaper: Arc<Reaper>,
}

impl DataDirectory {
    /// Creates a directory that contains a directory `logs`.
    pub fn create() -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Process ids repeat, and an earlier directory with kept logs may have the same id. The time makes the name unique.
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let path = env::temp_dir().join(format!("switchboard-{}-{count}-{time}", process::id()));
        let doing = || format!("create the data directory {} (TMPDIR sets its parent)", path.display());
        // `create_dir_all` would accept an existing directory, which belongs to another process.
        fs::create_dir(&path).map_err(Error::io(doing()))?;
        let reaper = Reaper::get()?;
        reaper.watch_directory(&path);
        fs::create_dir(path.join("logs")).map_err(Error::io(doing()))?;
        Ok(Self { path, keep_logs: AtomicBool::new(false), reaper })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the log of a server with this name.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// Writes a file that only this user can read, because most files contain keys or tokens.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        write_private(&path, content)?;
        Ok(path)
    }

    /// Removes the control groups with this name, one in each hierarchy, and their children after this process has ended.
    pub fn remove_cgroups(&self, name: &str) {
        self.reaper.watch_cgroups(name);
    }

    /// Keeps the logs after this value is dropped, because something failed.
    pub fn keep_logs(&self) {
        self.keep_logs.store(true, Ordering::Relaxed);
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        if self.keep_logs.load(Ordering::Relaxed) || thread::panicking() {
            for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
                if entry.file_name() != "logs" {
                    remove(&entry.path());
                }
            }
        } else {
            remove(&self.path);
        }
        self.reaper.forget_directory(&self.path);
    }
}

/// Ignores errors: the remaining files are in the temporary directory of the system.
fn remove(path: &Path) {
    if path.is_dir() {
        let _ = fs::remove_dir_all(path);
    } else {
        let _ = fs::remove_file(path);
    }
}

/// Copies a directory and its contents to `to`, which must not exist. Files keep their modes. Only this user can access the copied
/// directories, as etcd requires.
pub fn copy_directory(from: &Path, to: &Path) -> Result<(), Error> {
    copy_tree(from, to).map_err(Error::io(format!("copy {} to {}", from.display(), to.display())))
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if entry.is_dir() {
            copy_tree(&entry, &to)?;
        } else {
            fs::copy(&entry, &to)?;
        }
    }
    Ok(())
}

/// Writes a file with mode 0600.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<(), Error> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(Error::io(format!("write {}", path.display())))
}
