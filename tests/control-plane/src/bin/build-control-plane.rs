//! Builds what the tests need of the control plane, as a step of its own before them: else the first of them would seem to hang for
//! minutes.

use std::process::ExitCode;

use control_plane::tools::{self, Tool};

fn main() -> ExitCode {
    match tools::ensure(Tool::TESTS) {
        Ok(paths) => {
            for path in paths {
                println!("{}", path.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
