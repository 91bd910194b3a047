//! Supervises the tasks of the process. If a task ends unexpectedly, the process exits. A signal starts a shutdown, whose duration is
//! limited. This module does not depend on the purpose of the tasks.

use crate::telemetry::error_chain::ErrorChain;
use futures::{Stream, StreamExt};
use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The timeout of a shutdown, counted from the end of the drain delay. The chart's terminationGracePeriodSeconds includes this timeout and
/// the time to export the last spans.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(18);

/// The error of a task.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// Why the process exits with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task ended before it was cancelled.
    #[error("{0} ended unexpectedly; exiting to be restarted")]
    Ended(&'static str),
    /// A task failed or panicked.
    #[error("{task} ended unexpectedly: {}; exiting to be restarted", ErrorChain(.source.as_ref()))]
    Failed {
        /// The name of the task.
        task: &'static str,
        /// The cause.
        source: TaskError,
    },
    /// Tasks were still running when the shutdown timed out.
    #[error("the shutdown did not end within {} s of the drain delay; still running: {tasks}", SHUTDOWN_TIMEOUT.as_secs())]
    TimedOut {
        /// The names of the tasks.
        tasks: String,
    },
    /// A second signal arrived during the shutdown.
    #[error("{0} during the shutdown: exiting immediately")]
    Interrupted(&'static str),
}

struct Task {
    name: &'static str,
    /// Cancels a critical task; `None` for a background task.
    cancellation: Option<CancellationToken>,
}

/// The tasks of the process, and the signals that shut it down.
pub struct Supervisor<S> {
    signals: S,
    drain_delay: Duration,
    shutdown: CancellationToken,
    closing: CancellationToken,
    running: JoinSet<Result<(), TaskError>>,
    tasks: HashMap<Id, Task>,
}

impl<S: Stream<Item = &'static str> + Unpin> Supervisor<S> {
    /// A supervisor without tasks. `signals` are the names of the signals that arrive. `drain_delay` is the time from the first signal
    /// until new connections are no longer accepted.
    #[must_use]
    pub fn new(signals: S, drain_delay: Duration) -> Self {
        Self {
            signals,
            drain_delay,
            shutdown: CancellationToken::new(),
            closing: CancellationToken::new(),
            running: JoinSet::new(),
            tasks: HashMap::new(),
        }
    }

    /// Cancelled by the first signal.
    #[must_use]
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Cancelled at the end of the drain delay after the first signal.
    #[must_use]
    pub fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Starts a task that ends after `cancellation`. A shutdown waits for it.
    pub fn critical(
        &mut self,
        name: &'static str,
        cancellation: CancellationToken,
        task: impl Future<Output = Result<(), TaskError>> + Send + 'static,
    ) {
        let id = self.running.spawn(task).id();
        self.tasks.insert(id, Task { name, cancellation: Some(cancellation) });
    }

    /// Starts a task that runs until the process exits. A shutdown does not wait for it.
    pub fn background(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let task = async {
            task.await;
            Ok(())
        };
        let id = self.running.spawn(task).id();
        self.tasks.insert(id, Task { name, cancellation: None });
    }

    /// Waits for `work` while the tasks run; `None` if a signal arrives first.
    ///
    /// # Errors
    /// If a task ends meanwhile.
    pub async fn run_until<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, Error> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(Some(done)),
                Some(signal) = self.signals.next() => {
                    tracing::info!(signal, "shutting down");
                    return Ok(None);
                }
                ended = next_end(&mut self.running, &mut self.tasks) => ended?,
            }
        }
    }

    /// Runs until a signal, then calls `begin_shutdown` and shuts down.
    ///
    /// # Errors
    /// If a task ends before it is cancelled, or the shutdown is interrupted or times out.
    pub async fn run(mut self, begin_shutdown: impl FnOnce()) -> Result<(), Error> {
        self.run_until(std::future::pending::<()>()).await?;
        begin_shutdown();
        self.shutdown.cancel();
        let (mut drained, mut deadline) =
            (pin!(sleep(self.drain_delay)), pin!(sleep(self.drain_delay + SHUTDOWN_TIMEOUT)));
        while !self.critical_tasks().is_empty() {
            tokio::select! {
                Some(signal) = self.signals.next() => return Err(Error::Interrupted(signal)),
                () = &mut deadline => return Err(Error::TimedOut { tasks: self.critical_tasks().join(", ") }),
                () = &mut drained, if !self.closing.is_cancelled() => self.closing.cancel(),
                ended = next_end(&mut self.running, &mut self.tasks) => ended?,
            }
        }
        Ok(())
    }

    /// The names of the critical tasks that are running.
    fn critical_tasks(&self) -> Vec<&'static str> {
        let mut names: Vec<_> =
            self.tasks.values().filter(|task| task.cancellation.is_some()).map(|task| task.name).collect();
        names.sort_unstable();
        names
    }
}

/// Waits until a task ends. Fails unless it is a critical task that ends successfully after it was cancelled.
async fn next_end(running: &mut JoinSet<Result<(), TaskError>>, tasks: &mut HashMap<Id, Task>) -> Result<(), Error> {
    let Some(ended) = running.join_next_with_id().await else { return std::future::pending().await };
    let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
    let Some(Task { name, cancellation }) = tasks.remove(&id) else { return Ok(()) };
    match ended {
        Ok((_, Ok(()))) if cancellation.is_some_and(|cancellation| cancellation.is_cancelled()) => Ok(()),
        Ok((_, Ok(()))) => Err(Error::Ended(name)),
        Ok((_, Err(source))) => Err(Error::Failed { task: name, source }),
        Err(error) => Err(Error::Failed { task: name, source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
    use std::future::pending;
    use tokio::time::{Instant, timeout};

    const DRAIN_DELAY: Duration = Duration::from_secs(5);
    /// Longer than any of these tests, by the paused clock.
    const TIMEOUT: Duration = Duration::from_hours(1);

    type TestSupervisor = Supervisor<UnboundedReceiver<&'static str>>;

    fn supervisor() -> (TestSupervisor, UnboundedSender<&'static str>) {
        let (sender, signals) = unbounded();
        (Supervisor::new(signals, DRAIN_DELAY), sender)
    }

    /// A task that ends when it is cancelled.
    fn add_obedient(supervisor: &mut TestSupervisor, name: &'static str, cancellation: CancellationToken) {
        let cancelled = cancellation.clone();
        supervisor.critical(name, cancellation, async move {
            cancelled.cancelled().await;
            Ok(())
        });
    }

    /// The text of the supervisor's error.
    async fn failure(supervisor: TestSupervisor) -> String {
        let ended = timeout(TIMEOUT, supervisor.run(|| {})).await.expect("it ends");
        ErrorChain(&ended.expect_err("an error")).to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn task_that_ends_panics_or_fails_ends_the_process() {
        for (how, expected) in [("end", ""), ("panic", "boom"), ("fail", "cannot write")] {
            let (mut supervisor, _signals) = supervisor();
            let shutdown = supervisor.shutdown();
            add_obedient(&mut supervisor, "the other task", shutdown.clone());
            supervisor.critical("the task", shutdown, async move {
                sleep(Duration::from_secs(1)).await;
                assert_ne!(how, "panic", "boom");
                if how == "fail" { Err("cannot write".into()) } else { Ok(()) }
            });
            let text = failure(supervisor).await;
            assert!(text.starts_with("the task ended unexpectedly") && text.contains(expected), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn background_task_that_ends_ends_the_process() {
        for at in [Duration::ZERO, DRAIN_DELAY / 2] {
            let (mut supervisor, signals) = supervisor();
            let shutdown = supervisor.shutdown();
            supervisor.critical("the hanging task", shutdown, pending());
            supervisor.background("the background task", sleep(at));
            if !at.is_zero() {
                signals.unbounded_send("SIGTERM").unwrap();
            }
            let text = failure(supervisor).await;
            assert!(text.starts_with("the background task ended unexpectedly"), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_closes_after_the_drain_delay_and_waits_for_tasks() {
        let (mut supervisor, signals) = supervisor();
        let (shutdown, closing) = (supervisor.shutdown(), supervisor.closing());
        let begun = Instant::now();
        add_obedient(&mut supervisor, "the controller", shutdown.clone());
        add_obedient(&mut supervisor, "the webhook", closing.clone());
        supervisor.background("the probes", pending());
        signals.unbounded_send("SIGTERM").unwrap();
        let mut calls = 0;
        let ended = supervisor.run(|| {
            assert!(!shutdown.is_cancelled(), "the probe fails first");
            calls += 1;
        });
        assert!(timeout(TIMEOUT, ended).await.expect("it ends").is_ok());
        assert_eq!((calls, begun.elapsed()), (1, DRAIN_DELAY));
    }

    #[tokio::test(start_paused = true)]
    async fn task_that_panics_during_the_shutdown_ends_the_process() {
        let (mut supervisor, signals) = supervisor();
        let (shutdown, closing, stopped) = (supervisor.shutdown(), supervisor.closing(), CancellationToken::new());
        let asked = shutdown.clone();
        supervisor.critical("the controller", shutdown.clone(), async move {
            asked.cancelled().await;
            panic!("boom");
        });
        // The elector waits until the controller has stopped.
        add_obedient(&mut supervisor, "the elector", stopped);
        add_obedient(&mut supervisor, "the webhook", closing);
        signals.unbounded_send("SIGTERM").unwrap();
        let text = failure(supervisor).await;
        assert!(text.starts_with("the controller ended unexpectedly") && text.contains("boom"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn task_that_ends_before_cancellation_ends_the_process() {
        let (mut supervisor, signals) = supervisor();
        let (shutdown, closing) = (supervisor.shutdown(), supervisor.closing());
        // The webhook ends with the controller, while API servers still call it.
        supervisor.critical("the webhook", closing, async move {
            shutdown.cancelled().await;
            Ok(())
        });
        signals.unbounded_send("SIGTERM").unwrap();
        assert!(failure(supervisor).await.starts_with("the webhook ended unexpectedly"));
    }

    #[tokio::test(start_paused = true)]
    async fn second_signal_ends_the_process_at_once() {
        let (mut supervisor, signals) = supervisor();
        let shutdown = supervisor.shutdown();
        supervisor.critical("the hanging task", shutdown.clone(), pending());
        let begun = Instant::now();
        tokio::spawn(async move {
            signals.unbounded_send("SIGTERM").unwrap();
            shutdown.cancelled().await;
            signals.unbounded_send("SIGINT").unwrap();
        });
        assert_eq!(failure(supervisor).await, "SIGINT during the shutdown: exiting immediately");
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn task_that_hangs_ends_the_process_after_the_timeout() {
        let (mut supervisor, signals) = supervisor();
        let shutdown = supervisor.shutdown();
        add_obedient(&mut supervisor, "the obedient task", shutdown.clone());
        supervisor.critical("the hanging task", shutdown, pending());
        let begun = Instant::now();
        signals.unbounded_send("SIGTERM").unwrap();
        let text = failure(supervisor).await;
        assert!(text.ends_with("still running: the hanging task"), "{text}");
        assert_eq!(begun.elapsed(), DRAIN_DELAY + SHUTDOWN_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn signal_interrupts_the_startup() {
        let (mut supervisor, signals) = supervisor();
        assert!(matches!(supervisor.run_until(async { 7 }).await, Ok(Some(7))));
        signals.unbounded_send("SIGTERM").unwrap();
        assert!(matches!(supervisor.run_until(pending::<()>()).await, Ok(None)));
        supervisor.background("the probes", async {});
        assert!(supervisor.run_until(pending::<()>()).await.is_err(), "tasks are supervised meanwhile");
    }

    #[test]
    fn chart_gives_the_process_time_to_shut_down() {
        let helpers = include_str!("../charts/switchboard/templates/_helpers.tpl");
        let helper = helpers.split("define \"switchboard.terminationGracePeriod\"").nth(1);
        let seconds = helper.and_then(|rest| rest.split("(trimSuffix \"s\" .) ").nth(1)?.split(' ').next());
        let after_drain_delay = Duration::from_secs(seconds.unwrap().parse().unwrap());
        // The exporter of spans has five more seconds.
        assert!(after_drain_delay > SHUTDOWN_TIMEOUT + Duration::from_secs(5), "{after_drain_delay:?}");
    }
}
