//! When activity is reported: once at the beginning of a window, and once at its end if there was more. It makes no requests.

use crate::api::Time;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The windows of the conversations with recent activity, by UID.
#[derive(Debug, Default)]
pub struct Windows(Mutex<HashMap<String, Window>>);

#[derive(Debug)]
struct Window {
    /// Its end.
    end: Instant,
    /// The last activity in it that is not reported yet.
    unreported: Option<Time>,
}

impl Windows {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Window>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A conversation has activity at `time`. Returns whether it must be reported now, because no window is open; then one of this length
    /// begins, and the caller calls [`Windows::ended`] at its end.
    pub fn is_due(&self, uid: &str, time: Time, now: Instant, length: Duration) -> bool {
        let mut windows = self.lock();
        if let Some(window) = windows.get_mut(uid) {
            window.unreported = Some(time);
            return false;
        }
        windows.insert(uid.to_owned(), Window { end: now + length, unreported: None });
        true
    }

    /// The window of a conversation is over. Returns the activity to report, if there was more; then another window begins.
    pub fn ended(&self, uid: &str, now: Instant, length: Duration) -> Option<Time> {
        let mut windows = self.lock();
        let window = windows.get_mut(uid)?;
        let unreported = window.unreported.take();
        if unreported.is_some() {
            window.end = now + length;
        } else {
            windows.remove(uid);
        }
        unreported
    }

    /// The report of the activity at `time` failed: it is reported with what follows, at the end of the window.
    pub fn put_back(&self, uid: &str, time: Time) {
        if let Some(window) = self.lock().get_mut(uid) {
            window.unreported.get_or_insert(time);
        }
    }

    /// The end of the window of a conversation, if one is open.
    pub fn end(&self, uid: &str) -> Option<Instant> {
        self.lock().get(uid).map(|window| window.end)
    }

    /// Forgets the window: the conversation is closed, or has no status yet.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_reports_at_its_beginning_and_at_its_end() {
        let (windows, began, length) = (Windows::default(), Instant::now(), Duration::from_secs(10));
        let at = |seconds| (Time::EPOCH.after(Duration::from_secs(seconds)), began + Duration::from_secs(seconds));
        let is_due = |seconds| windows.is_due("a", at(seconds).0, at(seconds).1, length);
        assert!(is_due(0));
        assert!(!is_due(3) && !is_due(7));
        assert_eq!(windows.end("a"), Some(at(10).1));
        assert_eq!(windows.ended("a", at(10).1, length), Some(at(7).0), "the last one");
        assert!(!is_due(12), "the report at the end begins another window");
        assert_eq!(windows.ended("a", at(20).1, length), Some(at(12).0));
        assert_eq!(windows.ended("a", at(30).1, length), None, "nothing happened");
        assert!(is_due(31));
        windows.put_back("a", at(31).0);
        assert_eq!(windows.ended("a", at(41).1, length), Some(at(31).0), "its report failed");
        windows.forget("a");
        assert!(is_due(32) && windows.is_due("b", at(32).0, at(32).1, length));
    }
}
