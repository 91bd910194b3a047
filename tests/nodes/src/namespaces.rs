//! The network, mount and process namespaces of a node. One process holds them open. When it ends, all processes in them end, as after a
//! power cut. This module is independent of Kubernetes.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use control_plane::Process;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, Result, wait};

/// The namespaces of one node. The processes in them end when this value is dropped or this process ends.
pub struct Namespaces {
    holder: Process,
    /// The id, on the machine, of the first process in them.
    first: u32,
}

impl Namespaces {
    /// Creates namespaces. `directory` belongs to the node; `pause` is a program that waits and reaps processes.
    ///
    /// # Errors
    /// If the machine does not permit this user to create them.
    pub fn new(name: &str, directory: &Path, log: PathBuf, pause: &Path) -> Result<Self> {
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["sh", "-c", include_str!("namespaces.sh"), name])
            .args([directory, pause]);
        let holder = Process::new(name, log, command)?;
        holder.start()?;
        let first = wait(&format!("the namespaces of {name}"), Duration::from_secs(30), || {
            if let Some(status) = holder.wait(Duration::ZERO) {
                return Err(format!("{status}: {}", holder.log_tail()));
            }
            let id = holder.id().unwrap_or_default();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            let first = children.trim().parse().map_err(|_| "no process was started in them".to_owned())?;
            let prepared = Path::new(&format!("/proc/{first}/root")).join("run/prepared").exists();
            if prepared { Ok(first) } else { Err(holder.log_tail()) }
        })?;
        Ok(Self { holder, first })
    }

    /// The id, on the machine, of the first process in them.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.first
    }

    /// A command that runs in all of them.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.enter(&["--net", "--mount", "--pid"], program.as_ref())
    }

    /// A command that runs on the machine, but in the network of the node.
    #[must_use]
    pub fn client(&self, program: impl AsRef<Path>) -> Command {
        self.enter(&["--net"], program.as_ref())
    }

    fn enter(&self, which: &[&str], program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first.to_string()]).args(which).arg("--").arg(program);
        command
    }

    /// The network of the node, for threads of this process.
    ///
    /// # Errors
    /// If the namespaces no longer exist.
    pub fn network(&self) -> Result<Network> {
        let path = format!("/proc/{}/ns/net", self.first);
        File::open(&path).map(Network).map_err(|error| Error::io(format!("open {path}"), error))
    }

    /// Ends all processes in them immediately, as a power cut does.
    pub fn end(&self) {
        let started = Instant::now();
        self.holder.kill();
        // The kernel ends all processes of the process namespace after its first one. Mounts and sockets end with the last process.
        let first = format!("/proc/{}", self.first);
        while Path::new(&first).exists() && started.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.end();
    }
}

/// The network of a node.
#[derive(Debug)]
pub struct Network(File);

impl Network {
    /// Moves the calling thread into the network. Sockets that the thread opens afterwards belong to the node.
    ///
    /// # Errors
    /// If the system does not permit it.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| Error::io("enter the network of a node", error.into()))
    }
}
