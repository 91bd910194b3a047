//! Starts etcd.

use std::{path::Path, process::Command};

use crate::{Error, data_directory::DataDirectory, http, ports::Port, server::Server};

/// The directory of its data, inside the directory of the control plane.
pub(crate) const DATA: &str = "etcd";

/// Starts etcd on loopback with its data in [`DATA`] of the directory, and waits until it is ready.
pub(crate) fn start(binary: &Path, directory: &DataDirectory, port: &Port, fsync: bool) -> Result<Server, Error> {
    let address = port.address();
    let url = format!("http://{address}");
    let mut command = Command::new(binary);
    command
        .arg("--data-dir")
        .arg(directory.path().join(DATA))
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        // etcd has no peers here, but requires an address for them.
        .args(["--listen-peer-urls", "http://127.0.0.1:0"]);
    if !fsync {
        command.arg("--unsafe-no-fsync");
    }
    let ready = Box::new(move || http::is_ok(address, "/readyz"));
    let server = Server::new("etcd", directory.log("etcd"), command, address, ready)?;
    server.start()?;
    Ok(server)
}
