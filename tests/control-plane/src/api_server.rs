//! How an API server is started.

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Error,
    data_directory::DataDirectory,
    process,
    server::{Ready, Server},
};

/// The files that all API servers of a control plane share.
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) token_key_private: PathBuf,
    pub(crate) token_key_public: PathBuf,
    pub(crate) tokens: PathBuf,
}

/// An API server on loopback, not started yet. `kubectl` makes a kubectl command that talks to it as its administrator.
pub(crate) fn new(
    binary: &Path,
    directory: &DataDirectory,
    number: usize,
    address: SocketAddr,
    etcd: SocketAddr,
    files: &Files,
    flags: &[String],
    kubectl: impl Fn() -> Command + Send + Sync + 'static,
) -> Result<Server, Error> {
    let name = format!("api-server-{number}");
    let mut command = Command::new(binary);
    command
        .args(["--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"])
        .args(["--secure-port", &address.port().to_string()])
        .args(["--etcd-servers", &format!("http://{etcd}")])
        .arg("--tls-cert-file")
        .arg(&files.certificate)
        .arg("--tls-private-key-file")
        .arg(&files.key)
        .args(["--service-account-issuer", "https://kubernetes.default.svc"])
        .arg("--service-account-signing-key-file")
        .arg(&files.token_key_private)
        .arg("--service-account-key-file")
        .arg(&files.token_key_public)
        .arg("--token-auth-file")
        .arg(&files.tokens)
        .args(["--authorization-mode", "RBAC"])
        // Without a controller manager no namespace gets the service account that this plugin asks for.
        .args(["--disable-admission-plugins", "ServiceAccount"])
        // An endpoint on loopback is refused, and nobody needs the `kubernetes` service.
        .args(["--endpoint-reconciler-type", "none"])
        .args(["--service-cluster-ip-range", "10.0.0.0/24"])
        .args(flags);
    Server::new(&name, directory.log(&name), command, address, ready(address, kubectl))
}

/// Ready is: `/readyz`, which covers the roles of RBAC, and the namespace `default`, which comes a moment later.
fn ready(address: SocketAddr, kubectl: impl Fn() -> Command + Send + Sync + 'static) -> Ready {
    Box::new(move || {
        // A look at the port first, since kubectl costs 60 ms of CPU a call.
        TcpStream::connect(address).map_err(|error| format!("{address}: {error}"))?;
        for path in ["/readyz", "/api/v1/namespaces/default"] {
            let mut command = kubectl();
            command.args(["get", "--request-timeout", "2s", "--raw", path]);
            let output = process::output(&mut command).map_err(|error| error.to_string())?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
            }
        }
        Ok(())
    })
}
