//! A process that serves on loopback and has a readiness check: etcd, an API server or a replica of the operator. It keeps its address
//! after a restart.

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

/// The readiness check. An error contains the reason as a message.
pub(crate) type Ready = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A loaded machine, for example during a parallel test run, needs much longer than the usual three seconds.
const READY_TIMEOUT: Duration = Duration::from_mins(2);

/// etcd, an API server, or a replica of the operator. It is killed on drop.
pub struct Server {
    process: Process,
    address: SocketAddr,
    ready: Ready,
}

impl Server {
    /// Creates the server without starting it.
    pub(crate) fn new(
        name: impl Into<String>,
        log: std::path::PathBuf,
        command: Command,
        address: SocketAddr,
        ready: Ready,
    ) -> Result<Self, Error> {
        Ok(Self { process: Process::new(name, log, command)?, address, ready })
    }

    /// Starts it and returns when it is ready. A previous process is killed. It keeps its address and its data.
    pub fn start(&self) -> Result<(), Error> {
        self.start_without_waiting()?;
        self.wait_until_ready()
    }

    /// Starts it and returns immediately, for a server that must not become ready.
    pub fn start_without_waiting(&self) -> Result<(), Error> {
        self.process.start()
    }

    /// Returns when it is ready. It is an error if the server has ended, or is not ready after two minutes.
    pub fn wait_until_ready(&self) -> Result<(), Error> {
        let deadline = Instant::now() + READY_TIMEOUT;
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
                    within: READY_TIMEOUT,
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

    /// The shell command that runs the process, with its environment, and with `program` instead of its program.
    #[must_use]
    pub fn shell_line(&self, program: &str) -> String {
        self.process.shell_line(program)
    }

    /// Sends SIGTERM, and SIGKILL if it has not ended after 30 seconds. Returns when it is gone.
    pub fn stop(&self) {
        self.process.stop();
    }

    /// Sends SIGKILL. Returns when it is gone.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Sends SIGSTOP: it keeps its connections and its locks, but does not answer.
    pub fn pause(&self) {
        self.process.pause();
    }

    /// Sends SIGCONT.
    pub fn resume(&self) {
        self.process.resume();
    }

    /// Sends SIGTERM without waiting: see [`wait`](Self::wait).
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// Sends SIGINT without waiting: see [`wait`](Self::wait).
    pub fn interrupt(&self) {
        self.process.interrupt();
    }

    /// Waits for its end, and returns its exit status, or `None` if it still runs after that time or a method above has ended it.
    pub fn wait(&self, within: Duration) -> Option<ExitStatus> {
        self.process.wait(within)
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// The address for clients of etcd, for the API, or for the health endpoints of a replica.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The log with the output of all its starts.
    #[must_use]
    pub fn log(&self) -> &Path {
        self.process.log()
    }
}
