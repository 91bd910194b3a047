//! Starts an API server.

use std::{net::SocketAddr, path::Path, process::Command};

use crate::{
    Error,
    data_directory::DataDirectory,
    http::{ApiClient, Call},
    server::{Ready, Server},
};

/// The settings that all API servers of a control plane share.
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
    /// Creates an API server on loopback without starting it. `client` calls it as an administrator.
    pub(crate) fn server(&self, number: usize, address: SocketAddr, client: ApiClient) -> Result<Server, Error> {
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
            // This plugin requires a service account in each namespace, which only a controller manager creates.
            .args(["--disable-admission-plugins", "ServiceAccount"])
            // The API server rejects an endpoint on loopback, and no test needs the Service `kubernetes`.
            .args(["--endpoint-reconciler-type", "none"])
            .args(["--service-cluster-ip-range", "10.0.0.0/24"])
            .args(self.flags);
        let log = self.directory.log(&name);
        Server::new(name, log, command, address, ready(client))
    }
}

/// The server is ready when `/readyz` succeeds, which covers the roles of RBAC, and when the namespace `default` exists, which is
/// created a moment later.
fn ready(client: ApiClient) -> Ready {
    Box::new(move || {
        for path in ["/readyz", "/api/v1/namespaces/default"] {
            let answer = client.call(&Call::Get, path)?;
            if answer.status != 200 {
                return Err(format!("{path} answers {}: {}", answer.status, answer.body.trim()));
            }
        }
        Ok(())
    })
}
