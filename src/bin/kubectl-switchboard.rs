//! The kubectl plugin: nothing but its entry.

fn main() -> std::process::ExitCode {
    switchboard::plugin::run()
}
