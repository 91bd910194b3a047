//! The events that sinks receive: `CloudEvents` 1.0 over HTTP, signed as Standard Webhooks say. The router and the controller share this
//! module; it does not know what makes an event.
//!
//! - `event` has the events and their types;
//! - `signer` signs them, and reads its secrets;
//! - `sink` posts them.

mod event;
mod signer;
mod sink;

pub use event::{Event, EventType};
pub use signer::{Error as SigningError, InvalidSecret, Signer, SigningSecrets};
pub use sink::{Delivery, Failure, Sinks, Verdict, url};
