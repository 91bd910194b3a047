//! The processor time and memory of a process, from `/proc`.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    world::TIMEOUT,
};

/// Ticks per second in `/proc/PID/stat`. Linux uses this value for all user programs.
const TICKS: f64 = 100.0;

/// The processor time so far, in seconds, of all threads in user and kernel mode.
pub fn processor_seconds(id: Option<u32>) -> Result<f64> {
    let (path, text) = read(id, "stat")?;
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
pub fn resident_bytes(id: Option<u32>) -> Result<(f64, f64)> {
    let (path, text) = read(id, "status")?;
    let kilobytes = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        value.trim().trim_end_matches(" kB").parse::<f64>()
    };
    match (kilobytes("VmRSS:"), kilobytes("VmHWM:")) {
        (Ok(now), Ok(peak)) => Ok((now * 1024.0, peak * 1024.0)),
        _ => Err(Error::Unexpected(format!("{} has an unexpected format: {text}", path.display()))),
    }
}

/// Waits until these processes use almost no processor time.
pub fn wait_until_at_rest(ids: &[Option<u32>]) -> Result<()> {
    const INTERVAL: Duration = Duration::from_secs(1);
    const MAX_AT_REST: f64 = 0.03;
    let used = || -> Result<f64> { ids.iter().copied().map(processor_seconds).sum() };
    let deadline = Instant::now() + TIMEOUT;
    // Two consecutive checks, because a process that waits for the API server is also at rest.
    let (mut before, mut at_rest) = (used()?, 0);
    while at_rest < 2 {
        if Instant::now() >= deadline {
            return Err(Error::Unexpected("the processes are not at rest in time".to_owned()));
        }
        thread::sleep(INTERVAL);
        let now = used()?;
        at_rest = if now - before < MAX_AT_REST { at_rest + 1 } else { 0 };
        before = now;
    }
    Ok(())
}

fn read(id: Option<u32>, file: &str) -> Result<(PathBuf, String)> {
    let id = id.ok_or_else(|| Error::Unexpected("the process does not run".to_owned()))?;
    let path = PathBuf::from(format!("/proc/{id}/{file}"));
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    Ok((path, text))
}
