//! Parses the command line and runs it, on an allocator that is faster than that of the C library.

use clap::Parser;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> std::process::ExitCode {
    switchboard::cli::Cli::parse().run()
}
