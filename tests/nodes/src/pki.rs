//! The certificates and kubeconfigs of a cluster. One CA signs the certificates of servers and clients. It writes files, and starts no
//! process.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use control_plane::{Authority, DataDirectory, TokenKey};

use crate::{Result, network};

/// The files of a certificate and of its key, as PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The CA of a cluster, the certificates of the API servers, and the keys for the tokens of service accounts.
pub struct Pki {
    authority: Authority,
    /// The certificate of the CA.
    pub ca: PathBuf,
    /// The serving certificate of the API servers.
    pub api_server: Pair,
    /// The client certificate of the API servers for kubelets.
    pub kubelet_client: Pair,
    /// Signs tokens.
    pub token_private: PathBuf,
    /// Verifies tokens.
    pub token_public: PathBuf,
}

impl Pki {
    /// Creates a CA and its certificates, and writes them into `directory`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn new(directory: &DataDirectory) -> Result<Self> {
        let authority = Authority::new("nodes")?;
        let token = TokenKey::new()?;
        let hosts = [
            "127.0.0.1".to_owned(),
            network::address(1).to_string(),
            network::API_SERVICE.to_string(),
            "kubernetes.default.svc".to_owned(),
        ];
        let hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
        Ok(Self {
            ca: directory.write("ca.crt", authority.certificate())?,
            api_server: pair(&authority, directory, "kube-apiserver", "kube-apiserver", None, &hosts)?,
            kubelet_client: pair(
                &authority,
                directory,
                "kubelet-client",
                "kubelet-client",
                Some("system:masters"),
                &[],
            )?,
            token_private: directory.write("token.key", &token.private)?,
            token_public: directory.write("token.pub", &token.public)?,
            authority,
        })
    }

    /// Issues the serving certificate of the kubelet of a node.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn kubelet_serving(&self, directory: &DataDirectory, node: &str, address: Ipv4Addr) -> Result<Pair> {
        pair(&self.authority, directory, &format!("{node}-serving"), node, None, &[node, &address.to_string()])
    }

    /// Writes the kubeconfig of the user `name` in the group `group`, for the API server at this port.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn kubeconfig(&self, directory: &DataDirectory, name: &str, group: Option<&str>, port: u16) -> Result<PathBuf> {
        let file = format!("{}-{port}", name.replace(':', "-"));
        let client = pair(&self.authority, directory, &file, name, group, &[])?;
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: cluster\n\
             clusters: [{{name: cluster, cluster: {{server: \"https://{address}:{port}\", certificate-authority: {ca}}}}}]\n\
             contexts: [{{name: cluster, context: {{cluster: cluster, user: client}}}}]\n\
             users: [{{name: client, user: {{client-certificate: {certificate}, client-key: {key}}}}}]\n",
            address = network::address(1),
            ca = self.ca.display(),
            certificate = client.certificate.display(),
            key = client.key.display(),
        );
        Ok(directory.write(&format!("{file}.kubeconfig"), &text)?)
    }
}

/// Issues a certificate with the common name `name`, and writes it into files named `file`.
fn pair(
    authority: &Authority,
    directory: &DataDirectory,
    file: &str,
    name: &str,
    group: Option<&str>,
    hosts: &[&str],
) -> Result<Pair> {
    let issued = authority.issue_for(name, group, hosts)?;
    Ok(Pair {
        certificate: directory.write(&format!("{file}.crt"), &issued.certificate)?,
        key: directory.write(&format!("{file}.key"), &issued.key)?,
    })
}

/// A path as an argument.
pub(crate) fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}
