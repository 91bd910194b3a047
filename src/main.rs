//! Parses the command line and runs it: nothing else.

use clap::Parser;

fn main() -> std::process::ExitCode {
    switchboard::cli::Cli::parse().run()
}
