//! JSON that is written once and never read.

use super::Rejection;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

/// A value that is encoded as JSON already. Two are equal if their texts are.
#[derive(Clone, Debug, Serialize)]
pub struct Json(Box<RawValue>);

impl Json {
    /// `value` in JSON.
    pub(super) fn of(value: &impl Serialize) -> Result<Self, Rejection> {
        to_raw_value(value).map(Self).map_err(|_| Rejection::Malformed("a part of the message is not JSON"))
    }

    #[cfg(test)]
    pub(super) fn value(&self) -> serde_json::Value {
        serde_json::from_str(self.0.get()).unwrap()
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}
