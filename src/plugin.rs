//! `kubectl switchboard`, the plugin for people: who holds a binding, changes of participants and state, and explanations.
//!
//! It talks to the API server as its user and to nothing else. It reads with the types of [`api`](crate::api) and decides with
//! [`core`](crate::core), so no rule exists twice. It must not import the operator's components: the controller, the webhook, the router.

mod change;
mod claim;
mod cli;
mod cluster;
mod codes;
mod edit;
mod error;
mod explain;
mod list;
mod output;
mod owner;
mod target;
mod text;
mod watch;
mod who;

pub use cli::Cli;
