//! The machine of a measurement.

use std::{fs, path::Path, process::Command, thread};

use control_plane::tools::{self, Tool};
use serde::Serialize;

use crate::error::{Error, Result};

/// The machine and the versions of the programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// The name of the processor.
    pub processor: String,
    /// The number of hardware threads.
    pub cores: usize,
    /// The memory, in bytes.
    pub memory: u64,
    /// The version of the kernel.
    pub kernel: String,
    /// The version of the operator.
    pub switchboard: String,
    /// The version of the API server.
    pub kubernetes: String,
    /// The version of etcd.
    pub etcd: String,
}

impl Machine {
    /// Describes this machine, with the operator at this path.
    pub fn here(operator: &Path) -> Result<Self> {
        let [kubernetes, etcd] = tools::ensure([Tool::KubeApiserver, Tool::Etcd])?;
        let first = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches(|c: char| c == ':' || c.is_whitespace()).to_owned()
        };
        let kilobytes = first("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse::<u64>().unwrap_or_default();
        Ok(Self {
            processor: first("/proc/cpuinfo", "model name"),
            cores: thread::available_parallelism().map_or(0, usize::from),
            memory: kilobytes * 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            switchboard: version(operator)?,
            kubernetes: version(&kubernetes)?,
            etcd: version(&etcd)?,
        })
    }

    /// The description in one line.
    pub fn line(&self) -> String {
        let Self { processor, cores, memory, kernel, switchboard, kubernetes, etcd } = self;
        format!(
            "{cores} cores ({processor}), {} GiB, Linux {kernel}; switchboard {switchboard}, Kubernetes {kubernetes}, \
             etcd {etcd} with fsync",
            memory.div_ceil(1 << 30)
        )
    }
}

/// The last word of the first line of `--version`.
fn version(binary: &Path) -> Result<String> {
    let output = Command::new(binary).arg("--version").output().map_err(Error::io("run", binary))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().and_then(|line| line.split_whitespace().last()).unwrap_or_default().to_owned())
}
