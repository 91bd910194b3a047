//! Builds the tools of the control plane before the tests start. Otherwise the first test would seem to hang for minutes. The argument
//! `nodes` builds the tools of two nodes, `cert-manager` the components of cert-manager, and `flux` the controllers of Flux.

use std::{env, process::ExitCode};

use control_plane::tools::{self, Tool};

fn main() -> ExitCode {
    let built = match env::args().nth(1).as_deref() {
        None => tools::ensure(Tool::TESTS).map(Vec::from),
        Some("nodes") => tools::ensure(Tool::NODES).map(Vec::from),
        Some("cert-manager") => tools::ensure(Tool::CERT_MANAGER).map(Vec::from),
        Some("flux") => tools::ensure(Tool::FLUX).map(Vec::from),
        Some(other) => {
            eprintln!("error: unknown argument {other:?}; it must be nodes, cert-manager or flux");
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
