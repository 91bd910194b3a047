//! Reads mounted Secrets. The kubelet updates their files within about a minute after a Secret has changed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The interval between reads of a Secret.
pub const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The maximum size of a key, in bytes.
const MAX_KEY_BYTES: u64 = 4096;

/// A file that cannot be read, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}; check the volumes of the pod", .path.display())]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// The files of a mounted Secret: one for each of its keys. The names that start with a dot are the kubelet's own.
///
/// # Errors
/// If the directory or one of its files cannot be read.
pub fn read(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>, Unreadable> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| Unreadable { path, source }
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable(directory))? {
        let entry = entry.map_err(unreadable(directory))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with('.') {
            continue;
        }
        match read_key(&path) {
            Ok(Some(key)) => drop(files.insert(name, key)),
            Ok(None) => {}
            // The files are links to those of the current version. A key that has just been removed has a link for a moment longer.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(&path)(error)),
        }
    }
    Ok(files)
}

/// `None` if it is not a file.
fn read_key(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Ok(None);
    }
    if metadata.len() > MAX_KEY_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_KEY_BYTES} bytes")));
    }
    std::fs::read(path).map(Some)
}
