//! `kubectl switchboard`, the plugin for people: who holds a binding, changes of participants and state, and explanations.
//!
//! It talks to the API server as its user and to nothing else. It reads with the types of [`api`](crate::api) and decides with
//! [`core`](crate::core), so no rule exists twice. It must not import the operator's components: the controller, the webhook, the router.

mod change;
mod claim;
mod cli;
mod cluster;
mod codes;
mod complete;
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

use clap::Parser;
use std::path::Path;
use std::process::ExitCode;

/// Runs the plugin or, under the name that kubectl expects of it, its completion.
#[must_use]
pub fn run() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    if Path::new(&program).file_stem().is_some_and(|name| name == complete::PROGRAM) {
        return cli::run(complete::run(&arguments.collect::<Vec<_>>()));
    }
    Cli::parse().run()
}
