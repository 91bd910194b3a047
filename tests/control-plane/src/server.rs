//! A process that serves on loopback and says when it is ready: what etcd, an API server and a replica of the operator have in
//! common. It keeps its address over restarts.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Error,
    process::{POLL, Process},
};

/// Whether it is ready, or else why not, for a message.
pub(crate) type Ready = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A machine under load, such as one that runs all tests in parallel, needs many times the usual three seconds.
const READY_WITHIN: Duration = Duration::from_mins(2);

/// etcd, an API server, or a replica of the operator. It is killed when it is dropped.
pub struct Server {
    process: Process,
    address: SocketAddr,
    ready: Ready,
}

impl Server {
    /// Not started yet.
    pub(crate) fn new(
        name: impl Into<String>,
        log: std::path::PathBuf,
        command: Command,
        address: SocketAddr,
        ready: Ready,
    ) -> Result<Self, Error> {
        Ok(Self { process: Process::new(name, log, command)?, address, ready })
    }

    /// Starts it and returns when it is ready; what ran before is killed. It keeps its address and its data.
    pub fn start(&self) -> Result<(), Error> {
        self.start_without_waiting()?;
        self.wait_until_ready()
    }

    /// Starts it and returns at once: for a server that is meant not to become ready.
    pub fn start_without_waiting(&self) -> Result<(), Error> {
        self.process.start()
    }

    /// Returns when it is ready; an error when it has ended, or is not ready after two minutes.
    pub fn wait_until_ready(&self) -> Result<(), Error> {
        let deadline = Instant::now() + READY_WITHIN;
        while let Err(reason) = (self.ready)() {
            if let Some(status) = self.process.wait(Duration::ZERO) {
                return Err(Error::Ended {
                    name: self.process.name().to_owned(),
                    status: status.to_string(),
                    log_tail: self.process.log_tail(),
                    log: self.log().to_owned(),
                });
            }
            if Instant::now() >= deadline {
                return Err(Error::NotReady {
                    name: self.process.name().to_owned(),
                    within: READY_WITHIN,
                    reason,
                    log_tail: self.process.log_tail(),
                    log: self.log().to_owned(),
                });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// [`stop`](Self::stop), then [`start`](Self::start).
    pub fn restart(&self) -> Result<(), Error> {
        self.stop();
        self.start()
    }

    /// What runs it in a shell, its environment included, with `program` in place of its own.
    #[must_use]
    pub fn shell_line(&self, program: &str) -> String {
        self.process.shell_line(program)
    }

    /// SIGTERM, and SIGKILL if it has not ended after 30 seconds. Returns when it is gone.
    pub fn stop(&self) {
        self.process.stop();
    }

    /// SIGKILL. Returns when it is gone.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// SIGSTOP: connections and locks stay, nothing is answered.
    pub fn pause(&self) {
        self.process.pause();
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.resume();
    }

    /// SIGTERM, without waiting: see [`wait`](Self::wait).
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// SIGINT, without waiting: see [`wait`](Self::wait).
    pub fn interrupt(&self) {
        self.process.interrupt();
    }

    /// How it ended, or `None` when it still runs after that time, or had been ended by one of the methods above.
    pub fn wait(&self, within: Duration) -> Option<ExitStatus> {
        self.process.wait(within)
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Where it serves: etcd's clients, the API, the health endpoints of a replica.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it prints to, over all its starts.
    #[must_use]
    pub fn log(&self) -> &Path {
        self.process.log()
    }
}
