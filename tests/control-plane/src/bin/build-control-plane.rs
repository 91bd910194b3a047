//! Builds what the tests need of the control plane, as a step of its own before them: else the first of them would seem to hang for
//! minutes. With the argument `nodes` it builds what two nodes need, with `cert-manager` its parts.

use std::{env, process::ExitCode};

use control_plane::tools::{self, Tool};

fn main() -> ExitCode {
    let built = match env::args().nth(1).as_deref() {
        None => tools::ensure(Tool::TESTS).map(Vec::from),
        Some("nodes") => tools::ensure(Tool::NODES).map(Vec::from),
        Some("cert-manager") => tools::ensure(Tool::CERT_MANAGER).map(Vec::from),
        Some(other) => {
            eprintln!("error: {other:?} is none of: nodes, cert-manager");
            return ExitCode::FAILURE;
        }
    };
    match built {
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
