//! When activity is reported: once at the beginning of a window, and once at its end if there was more. It makes no requests.

use crate::api::Time;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The windows of the conversations with recent activity, by UID. The length of a window may change while it is open, as timers do.
#[derive(Debug, Default)]
pub struct Windows(Mutex<HashMap<String, Window>>);

#[derive(Debug)]
struct Window {
    /// Its beginning.
    begun: Instant,
    /// The last activity in it that is not reported yet.
    unreported: Option<Time>,
}

/// Whether activity must be reported now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// No: it is reported at the end of the window.
    Later,
    /// Yes. A window begins, and the caller watches for its end.
    Now,
    /// Yes. The window that was open is over, and another begins; its end is watched for already.
    NowAgain,
}

/// What happens at the end of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowEnd {
    /// It is not over before this instant.
    At(Instant),
    /// It is over, and this activity is to be reported. Another window begins.
    Report(Time),
    /// It is over, and nothing is to be reported.
    Over,
}

impl Windows {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Window>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A conversation whose windows have this length has activity at `time`.
    pub fn activity(&self, uid: &str, time: Time, now: Instant, length: Duration) -> Due {
        let mut windows = self.lock();
        let Some(window) = windows.get_mut(uid) else {
            windows.insert(uid.to_owned(), Window { begun: now, unreported: None });
            return Due::Now;
        };
        if now < window.begun + length {
            window.unreported = Some(time);
            return Due::Later;
        }
        *window = Window { begun: now, unreported: None };
        Due::NowAgain
    }

    /// What is to be done about the window of a conversation, if its length is `length` now.
    pub fn end(&self, uid: &str, now: Instant, length: Duration) -> WindowEnd {
        let mut windows = self.lock();
        let Some(window) = windows.get_mut(uid) else { return WindowEnd::Over };
        let end = window.begun + length;
        if now < end {
            return WindowEnd::At(end);
        }
        if let Some(time) = window.unreported.take() {
            window.begun = now;
            return WindowEnd::Report(time);
        }
        windows.remove(uid);
        WindowEnd::Over
    }

    /// The report of the activity at `time` failed: it is reported with what follows, at the end of the window.
    pub fn put_back(&self, uid: &str, time: Time) {
        if let Some(window) = self.lock().get_mut(uid) {
            window.unreported.get_or_insert(time);
        }
    }

    /// Forgets the window: the conversation is closed, or has no status yet.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::EPOCH.after(Duration::from_secs(seconds))
    }

    #[test]
    fn window_reports_at_its_beginning_and_at_its_end() {
        let (windows, began, length) = (Windows::default(), Instant::now(), Duration::from_secs(10));
        let after = |seconds| began + Duration::from_secs(seconds);
        let activity = |seconds| windows.activity("a", at(seconds), after(seconds), length);
        let end = |seconds| windows.end("a", after(seconds), length);
        assert_eq!(activity(0), Due::Now);
        assert_eq!((activity(3), activity(7)), (Due::Later, Due::Later));
        assert_eq!(end(9), WindowEnd::At(after(10)));
        assert_eq!(end(10), WindowEnd::Report(at(7)), "the last one");
        assert_eq!(activity(12), Due::Later, "the report at the end begins another window");
        assert_eq!(end(20), WindowEnd::Report(at(12)));
        assert_eq!(end(30), WindowEnd::Over, "nothing happened");
        assert_eq!(activity(31), Due::Now);
        windows.put_back("a", at(31));
        assert_eq!(end(41), WindowEnd::Report(at(31)), "its report failed");
        windows.forget("a");
        assert_eq!((end(60), activity(61)), (WindowEnd::Over, Due::Now));
    }

    #[test]
    fn window_that_becomes_shorter_ends_earlier() {
        let (windows, began) = (Windows::default(), Instant::now());
        let after = |seconds| began + Duration::from_secs(seconds);
        let (long, short) = (Duration::from_mins(5), Duration::from_secs(6));
        assert_eq!(windows.activity("a", at(0), after(0), long), Due::Now);
        assert_eq!(windows.activity("a", at(3), after(3), long), Due::Later);
        assert_eq!(windows.end("a", after(7), short), WindowEnd::Report(at(3)));
        assert_eq!(windows.activity("a", at(14), after(14), short), Due::NowAgain);
    }
}
