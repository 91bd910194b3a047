//! `make test-versions`: runs the suites that depend on the API server against each of its versions.
//!
//! Environment: `VERSIONS` lists minor versions, as in `VERSIONS="1.31 1.35"` (default: all).

use std::{env, process::ExitCode};

use control_plane::{Error, Kubernetes, versions};

fn main() -> ExitCode {
    match chosen().and_then(|chosen| versions::run(&chosen)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn chosen() -> Result<Vec<Kubernetes>, Error> {
    let names = env::var_os("VERSIONS").unwrap_or_default().to_string_lossy().into_owned();
    if names.trim().is_empty() {
        return Ok(Kubernetes::all().collect());
    }
    names.split_whitespace().map(Kubernetes::of_minor).collect()
}
