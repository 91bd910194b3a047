//! How an API server is started.

use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use crate::{
    Error,
    data_directory::DataDirectory,
    process,
    server::{Ready, Server},
};

/// What all API servers of a control plane share.
pub(crate) struct Plan<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) directory: &'a DataDirectory,
    pub(crate) etcd: SocketAddr,
    pub(crate) certificate: &'a Path,
    pub(crate) key: &'a Path,
    pub(crate) token_key_private: &'a Path,
    pub(crate) token_key_public: &'a Path,
    pub(crate) tokens: &'a Path,
    pub(crate) flags: &'a [String],
}

impl Plan<'_> {
    /// An API server on loopback, not started yet. `kubectl` makes a command that talks to it as an administrator.
    pub(crate) fn server(
        &self,
        number: usize,
        address: SocketAddr,
        kubectl: impl Fn() -> Command + Send + Sync + 'static,
    ) -> Result<Server, Error> {
        let name = format!("api-server-{number}");
        let mut command = Command::new(self.binary);
        command
            .args(["--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"])
            .args(["--secure-port", &address.port().to_string()])
            .args(["--etcd-servers", &format!("http://{}", self.etcd)])
            .arg("--tls-cert-file")
            .arg(self.certificate)
            .arg("--tls-private-key-file")
            .arg(self.key)
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .arg("--service-account-signing-key-file")
            .arg(self.token_key_private)
            .arg("--service-account-key-file")
            .arg(self.token_key_public)
            .arg("--token-auth-file")
            .arg(self.tokens)
            .args(["--authorization-mode", "RBAC"])
            // Without a controller manager no namespace gets the service account that this plugin asks for.
            .args(["--disable-admission-plugins", "ServiceAccount"])
            // An endpoint on loopback is refused, and nobody needs the service `kubernetes`.
            .args(["--endpoint-reconciler-type", "none"])
            .args(["--service-cluster-ip-range", "10.0.0.0/24"])
            .args(self.flags);
        let log = self.directory.log(&name);
        Server::new(name, log, command, address, ready(address, kubectl))
    }
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
