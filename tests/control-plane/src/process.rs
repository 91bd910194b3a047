//! A child process that can be stopped, killed, paused and restarted, and commands that end together with this process. It is independent
//! of the program that runs.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use crate::{
    Error,
    reaper::{Reaper, lock},
};

/// The time between SIGTERM and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The interval between two checks of a condition.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// A child process in its own process group, so that a Ctrl-C in the terminal does not reach it. Its output goes to a log file.
pub struct Process {
    name: String,
    log: PathBuf,
    command: Mutex<Command>,
    child: Mutex<Option<Child>>,
    reaper: Arc<Reaper>,
}

impl Process {
    /// Creates the process without starting it.
    pub fn new(name: impl Into<String>, log: PathBuf, command: Command) -> Result<Self, Error> {
        Ok(Self {
            name: name.into(),
            log,
            command: Mutex::new(command),
            child: Mutex::new(None),
            reaper: Reaper::get()?,
        })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The log with the output of all its starts.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of the log, for a message.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 12;
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        lock(&self.child).as_ref().map(Child::id)
    }

    /// Starts it, and kills the previous child if one runs.
    pub fn start(&self) -> Result<(), Error> {
        self.kill();
        let log = || -> io::Result<File> { OpenOptions::new().create(true).append(true).open(&self.log) };
        let open = |result: io::Result<File>| result.map_err(Error::io(format!("write {}", self.log.display())));
        let mut command = lock(&self.command);
        command.stdin(Stdio::null()).stdout(open(log())?).stderr(open(log())?).process_group(0);
        let child = command.spawn().map_err(Error::io(format!("start {}", command.get_program().display())))?;
        self.reaper.watch_group(Pid::from_child(&child));
        *lock(&self.child) = Some(child);
        Ok(())
    }

    /// Sends SIGTERM, and SIGKILL if it does not end within 30 seconds. A paused process is resumed first.
    pub fn stop(&self) {
        self.terminate();
        self.signal(Signal::CONT);
        if self.wait(STOP_TIMEOUT).is_none() {
            self.kill();
        }
    }

    /// Sends SIGTERM without waiting.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGINT without waiting.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// The shell command that runs the process, with its environment, and with `program` instead of its program.
    pub(crate) fn shell_line(&self, program: &str) -> String {
        let command = lock(&self.command);
        let variables = command.get_envs();
        let environment = variables.filter_map(|(name, value)| Some(format!("{}={}", name.display(), quoted(value?))));
        let arguments = command.get_args().map(quoted);
        environment.chain([program.to_owned()]).chain(arguments).collect::<Vec<_>>().join(" ")
    }

    /// Sends SIGKILL, and returns when the process is gone.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        let child = lock(&self.child).take();
        if let Some(mut child) = child {
            let _ = child.wait();
            self.reaper.forget_group(Pid::from_child(&child));
        }
    }

    /// Sends SIGSTOP: the process keeps its connections and its locks, but does not run.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Sends SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for its end, and returns its exit status, or `None` if it still runs after that time or never ran.
    pub fn wait(&self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            let mut slot = lock(&self.child);
            let child = slot.as_mut()?;
            if let Ok(Some(status)) = child.try_wait() {
                self.reaper.forget_group(Pid::from_child(child));
                *slot = None;
                return Some(status);
            }
            drop(slot);
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(POLL);
        }
    }

    /// Ignores the error for a process that has just ended.
    fn signal(&self, signal: Signal) {
        if let Some(child) = lock(&self.child).as_ref() {
            let _ = rustix::process::kill_process_group(Pid::from_child(child), signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command like [`Command::output`], but the command also ends when this process ends or is killed.
pub fn output(command: &mut Command) -> Result<Output, Error> {
    let failed = format!("run {}", command.get_program().display());
    let reaper = Reaper::get()?;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(Error::io(failed.clone()))?;
    let leader = Pid::from_child(&child);
    reaper.watch_group(leader);
    let output = child.wait_with_output();
    reaper.forget_group(leader);
    output.map_err(Error::io(failed))
}

/// Runs a command that must succeed, and returns its output.
pub fn run(command: &mut Command) -> Result<String, Error> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Err(Error::Command { command: command_line(command), output: text.trim().to_owned() })
}

/// The word, quoted for a shell if necessary.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_=./:,@%+".contains(letter);
    if word.chars().all(is_plain) { word.into_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// The command line as text.
pub(crate) fn command_line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
