//! Keeps the parts of the process together: a part that ends unexpectedly ends the process, and a signal ends it in order, within a
//! bounded time. It knows nothing of what the parts do.

use crate::telemetry::error_chain::ErrorChain;
use futures::{Stream, StreamExt};
use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The longest time from the end of the drain delay to the end of the process. The chart's terminationGracePeriodSeconds leaves
/// room for it, and for the last spans to be sent.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(18);

/// What a part fails with.
pub type PartError = Box<dyn std::error::Error + Send + Sync>;

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part ended before it was asked to.
    #[error("{0} ended unexpectedly; the process ends with it, to be started again")]
    Ended(&'static str),
    /// A part failed or panicked.
    #[error("{part} ended unexpectedly: {}; the process ends with it, to be started again", ErrorChain(.source.as_ref()))]
    Failed {
        /// The name of the part.
        part: &'static str,
        /// Why it failed.
        source: PartError,
    },
    /// Parts went on after a shutdown for longer than they may.
    #[error("the shutdown did not end within {} s of the drain delay; still running: {parts}", SHUTDOWN_TIMEOUT.as_secs())]
    TimedOut {
        /// The names of the parts.
        parts: String,
    },
    /// A second signal came before the shutdown had ended.
    #[error("{0} during the shutdown: ended at once")]
    Interrupted(&'static str),
}

struct Part {
    name: &'static str,
    /// What asks the part to end; none for a part that never ends by itself.
    ends_after: Option<CancellationToken>,
}

/// The parts of a process, and the signals that end it.
pub struct Supervisor<S> {
    signals: S,
    drain_delay: Duration,
    shutdown: CancellationToken,
    closing: CancellationToken,
    tasks: JoinSet<Result<(), PartError>>,
    parts: HashMap<Id, Part>,
}

impl<S: Stream<Item = &'static str> + Unpin> Supervisor<S> {
    /// A supervisor without parts yet. `signals` are the names of the signals that arrive. `drain_delay` is the time from the first
    /// one until new connections are no longer accepted.
    #[must_use]
    pub fn new(signals: S, drain_delay: Duration) -> Self {
        Self {
            signals,
            drain_delay,
            shutdown: CancellationToken::new(),
            closing: CancellationToken::new(),
            tasks: JoinSet::new(),
            parts: HashMap::new(),
        }
    }

    /// Cancelled by the first signal.
    #[must_use]
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Cancelled when the drain delay after the first signal is over.
    #[must_use]
    pub fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Starts a part that ends after `ends_after` is cancelled, and which a shutdown waits for.
    pub fn critical(
        &mut self,
        name: &'static str,
        ends_after: CancellationToken,
        part: impl Future<Output = Result<(), PartError>> + Send + 'static,
    ) {
        let id = self.tasks.spawn(part).id();
        self.parts.insert(id, Part { name, ends_after: Some(ends_after) });
    }

    /// Starts a part that never ends by itself, and which a shutdown does not wait for.
    pub fn background(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let part = async {
            part.await;
            Ok(())
        };
        let id = self.tasks.spawn(part).id();
        self.parts.insert(id, Part { name, ends_after: None });
    }

    /// Waits for `work` while the parts run; none where a signal came first.
    ///
    /// # Errors
    /// Where a part ends meanwhile.
    pub async fn run_until<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, Error> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(Some(done)),
                Some(signal) = self.signals.next() => {
                    tracing::info!("{signal}: shutting down");
                    return Ok(None);
                }
                ended = next_end(&mut self.tasks, &mut self.parts) => ended?,
            }
        }
    }

    /// Runs until a signal; then shuts down, and first calls `begin_shutdown`.
    ///
    /// # Errors
    /// Where a part ends that was not asked to, or the shutdown is interrupted or takes too long.
    pub async fn run(mut self, begin_shutdown: impl FnOnce()) -> Result<(), Error> {
        self.run_until(std::future::pending::<()>()).await?;
        begin_shutdown();
        self.shutdown.cancel();
        let (mut drained, mut deadline) =
            (pin!(sleep(self.drain_delay)), pin!(sleep(self.drain_delay + SHUTDOWN_TIMEOUT)));
        while !self.running().is_empty() {
            tokio::select! {
                Some(signal) = self.signals.next() => return Err(Error::Interrupted(signal)),
                () = &mut deadline => return Err(Error::TimedOut { parts: self.running().join(", ") }),
                () = &mut drained, if !self.closing.is_cancelled() => self.closing.cancel(),
                ended = next_end(&mut self.tasks, &mut self.parts) => ended?,
            }
        }
        Ok(())
    }

    /// The parts that a shutdown waits for.
    fn running(&self) -> Vec<&'static str> {
        let mut names: Vec<_> =
            self.parts.values().filter(|part| part.ends_after.is_some()).map(|part| part.name).collect();
        names.sort_unstable();
        names
    }
}

/// Waits until a part ends. An error where it was not to end, or not like that.
async fn next_end(tasks: &mut JoinSet<Result<(), PartError>>, parts: &mut HashMap<Id, Part>) -> Result<(), Error> {
    let Some(ended) = tasks.join_next_with_id().await else { return std::future::pending().await };
    let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
    let Some(Part { name, ends_after }) = parts.remove(&id) else { return Ok(()) };
    match ended {
        Ok((_, Ok(()))) if ends_after.is_some_and(|asked| asked.is_cancelled()) => Ok(()),
        Ok((_, Ok(()))) => Err(Error::Ended(name)),
        Ok((_, Err(source))) => Err(Error::Failed { part: name, source }),
        Err(error) => Err(Error::Failed { part: name, source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
    use std::future::pending;
    use tokio::time::{Instant, timeout};

    const DRAIN_DELAY: Duration = Duration::from_secs(5);
    /// Longer than anything here may take, by the paused clock.
    const TIMEOUT: Duration = Duration::from_hours(1);

    type TestSupervisor = Supervisor<UnboundedReceiver<&'static str>>;

    fn supervisor() -> (TestSupervisor, UnboundedSender<&'static str>) {
        let (sender, signals) = unbounded();
        (Supervisor::new(signals, DRAIN_DELAY), sender)
    }

    /// A part that ends when it is asked to.
    fn add_obedient(supervisor: &mut TestSupervisor, name: &'static str, ends_after: CancellationToken) {
        let asked = ends_after.clone();
        supervisor.critical(name, ends_after, async move {
            asked.cancelled().await;
            Ok(())
        });
    }

    /// The text of the error that the supervisor ends with.
    async fn failure(supervisor: TestSupervisor) -> String {
        let ended = timeout(TIMEOUT, supervisor.run(|| {})).await.expect("it ends");
        ErrorChain(&ended.expect_err("an error")).to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn part_that_ends_panics_or_fails_ends_the_process() {
        for (how, expected) in [("end", ""), ("panic", "boom"), ("fail", "cannot write")] {
            let (mut supervisor, _signals) = supervisor();
            let shutdown = supervisor.shutdown();
            add_obedient(&mut supervisor, "the other part", shutdown.clone());
            supervisor.critical("the part", shutdown, async move {
                sleep(Duration::from_secs(1)).await;
                assert_ne!(how, "panic", "boom");
                if how == "fail" { Err("cannot write".into()) } else { Ok(()) }
            });
            let text = failure(supervisor).await;
            assert!(text.starts_with("the part ended unexpectedly") && text.contains(expected), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn background_part_that_ends_ends_the_process() {
        for at in [Duration::ZERO, DRAIN_DELAY / 2] {
            let (mut supervisor, signals) = supervisor();
            let shutdown = supervisor.shutdown();
            supervisor.critical("the hanging part", shutdown, pending());
            supervisor.background("the background part", sleep(at));
            if !at.is_zero() {
                signals.unbounded_send("SIGTERM").unwrap();
            }
            let text = failure(supervisor).await;
            assert!(text.starts_with("the background part ended unexpectedly"), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_closes_after_the_drain_delay_and_waits_for_the_parts() {
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
    async fn part_that_panics_during_the_shutdown_ends_the_process() {
        let (mut supervisor, signals) = supervisor();
        let (shutdown, closing, stopped) = (supervisor.shutdown(), supervisor.closing(), CancellationToken::new());
        let asked = shutdown.clone();
        supervisor.critical("the controller", shutdown.clone(), async move {
            asked.cancelled().await;
            panic!("boom");
        });
        // As the elector, which waits for the controller to have stopped.
        add_obedient(&mut supervisor, "the elector", stopped);
        add_obedient(&mut supervisor, "the webhook", closing);
        signals.unbounded_send("SIGTERM").unwrap();
        let text = failure(supervisor).await;
        assert!(text.starts_with("the controller ended unexpectedly") && text.contains("boom"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn part_that_ends_before_it_is_asked_to_ends_the_process() {
        let (mut supervisor, signals) = supervisor();
        let (shutdown, closing) = (supervisor.shutdown(), supervisor.closing());
        // The webhook ends with the controller, while others still call it.
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
        supervisor.critical("the hanging part", shutdown.clone(), pending());
        let begun = Instant::now();
        tokio::spawn(async move {
            signals.unbounded_send("SIGTERM").unwrap();
            shutdown.cancelled().await;
            signals.unbounded_send("SIGINT").unwrap();
        });
        assert_eq!(failure(supervisor).await, "SIGINT during the shutdown: ended at once");
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn part_that_hangs_ends_the_process_after_the_timeout() {
        let (mut supervisor, signals) = supervisor();
        let shutdown = supervisor.shutdown();
        add_obedient(&mut supervisor, "the obedient part", shutdown.clone());
        supervisor.critical("the hanging part", shutdown, pending());
        let begun = Instant::now();
        signals.unbounded_send("SIGTERM").unwrap();
        let text = failure(supervisor).await;
        assert!(text.ends_with("still running: the hanging part"), "{text}");
        assert_eq!(begun.elapsed(), DRAIN_DELAY + SHUTDOWN_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn signal_ends_the_wait_for_what_comes_first() {
        let (mut supervisor, signals) = supervisor();
        assert!(matches!(supervisor.run_until(async { 7 }).await, Ok(Some(7))));
        signals.unbounded_send("SIGTERM").unwrap();
        assert!(matches!(supervisor.run_until(pending::<()>()).await, Ok(None)));
        supervisor.background("the probes", async {});
        assert!(supervisor.run_until(pending::<()>()).await.is_err(), "parts are watched meanwhile");
    }

    #[test]
    fn chart_gives_the_process_time_to_shut_down() {
        let template = include_str!("../charts/switchboard/templates/deployment.yaml");
        let seconds =
            template.split("switchboard.drainDelaySeconds\" .) ").nth(1).and_then(|rest| rest.split(' ').next());
        let after_drain_delay = Duration::from_secs(seconds.unwrap().parse().unwrap());
        // The exporter of spans has five more.
        assert!(after_drain_delay > SHUTDOWN_TIMEOUT + Duration::from_secs(5), "{after_drain_delay:?}");
    }
}
