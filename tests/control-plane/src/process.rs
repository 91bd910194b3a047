//! A child process that can be stopped, killed, paused, and started again; and commands that end when this process does. It
//! knows nothing of what the child is.

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

/// How long a process has to end by itself after a SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// How often a condition is looked at while it is waited for.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// One child, in a process group of its own so that a Ctrl-C in the terminal does not reach it; what it prints goes to a log file.
pub struct Process {
    name: String,
    log: PathBuf,
    command: Mutex<Command>,
    child: Mutex<Option<Child>>,
    reaper: Arc<Reaper>,
}

impl Process {
    /// Not started yet.
    pub fn new(name: impl Into<String>, log: PathBuf, command: Command) -> Result<Self, Error> {
        Ok(Self {
            name: name.into(),
            log,
            command: Mutex::new(command),
            child: Mutex::new(None),
            reaper: Reaper::get()?,
        })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it prints to, over all its starts.
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

    /// Starts it; what ran before is killed.
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

    /// SIGTERM, and SIGKILL if it does not end within 30 seconds; a paused one goes on in order to end.
    pub fn stop(&self) {
        self.terminate();
        self.signal(Signal::CONT);
        if self.wait(STOP_WITHIN).is_none() {
            self.kill();
        }
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGINT, without waiting.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// What runs it in a shell, its environment included, with `program` in place of its own.
    pub(crate) fn shell_line(&self, program: &str) -> String {
        let command = lock(&self.command);
        let variables = command.get_envs();
        let environment = variables.filter_map(|(name, value)| Some(format!("{}={}", name.display(), quoted(value?))));
        let arguments = command.get_args().map(quoted);
        environment.chain([program.to_owned()]).chain(arguments).collect::<Vec<_>>().join(" ")
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        let child = lock(&self.child).take();
        if let Some(mut child) = child {
            let _ = child.wait();
            self.reaper.forget_group(Pid::from_child(&child));
        }
    }

    /// SIGSTOP: it keeps its connections and its locks, and does nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// How it ended, or `None` when it still runs after that time (or never ran).
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

    /// A process that has just ended by itself cannot be signalled, which is no error here.
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

/// Runs a command to its end like [`Command::output`], but so that it ends with this process, however that ends.
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

/// Runs a command that is to succeed, and returns what it printed.
pub fn run(command: &mut Command) -> Result<String, Error> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Err(Error::Command { command: typed(command), output: text.trim().to_owned() })
}

/// One word for a shell.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_=./:,@%+".contains(letter);
    if word.chars().all(is_plain) { word.into_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// The command as one would type it.
pub(crate) fn typed(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
