//! The processor time and memory of a process, from `/proc`.

use std::{fs, path::PathBuf};

use control_plane::Server;

use crate::error::{Error, Result};

/// Ticks per second in `/proc/PID/stat`. Linux uses this value for all user programs.
const TICKS: f64 = 100.0;

/// The processor time so far, in seconds, of all threads in user and kernel mode.
pub fn processor_seconds(server: &Server) -> Result<f64> {
    let (path, text) = read(server, "stat")?;
    // The name of the program, in parentheses, may contain spaces. utime and stime are the 12th and the 13th field after it.
    let after_name = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks: Vec<f64> =
        after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    match ticks[..] {
        [user, system] => Ok((user + system) / TICKS),
        _ => Err(Error::Unexpected(format!("{} has an unexpected format: {text}", path.display()))),
    }
}

/// The resident memory in bytes: now, and its peak.
pub fn resident_bytes(server: &Server) -> Result<(f64, f64)> {
    let (path, text) = read(server, "status")?;
    let kilobytes = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        value.trim().trim_end_matches(" kB").parse::<f64>()
    };
    match (kilobytes("VmRSS:"), kilobytes("VmHWM:")) {
        (Ok(now), Ok(peak)) => Ok((now * 1024.0, peak * 1024.0)),
        _ => Err(Error::Unexpected(format!("{} has an unexpected format: {text}", path.display()))),
    }
}

fn read(server: &Server, file: &str) -> Result<(PathBuf, String)> {
    let id = server.id().ok_or_else(|| Error::Unexpected("the operator does not run".to_owned()))?;
    let path = PathBuf::from(format!("/proc/{id}/{file}"));
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    Ok((path, text))
}
