//! The kubectl plugin: parses the command line and runs it, nothing else.

use clap::Parser;

fn main() -> std::process::ExitCode {
    switchboard::plugin::Cli::parse().run()
}
