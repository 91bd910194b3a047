//! Formats kubeconfigs. Pure: it returns text.

use std::net::SocketAddr;

use data_encoding::BASE64;

/// Returns a kubeconfig for one token, with a context `api-1`, `api-2`, … for each API server. The first context is the current one.
pub(crate) fn kubeconfig(authority: &str, servers: &[(usize, SocketAddr)], user: &str, token: &str) -> String {
    let authority = BASE64.encode(authority.as_bytes());
    let clusters: Vec<_> = servers
        .iter()
        .map(|(number, address)| {
            format!(
                "  - name: api-{number}\n    cluster:\n      server: https://{address}\n      \
                 certificate-authority-data: {authority}\n"
            )
        })
        .collect();
    let contexts: Vec<_> = servers
        .iter()
        .map(|(number, _)| {
            format!("  - name: api-{number}\n    context:\n      cluster: api-{number}\n      user: {user}\n")
        })
        .collect();
    let current = servers.first().map_or(1, |(number, _)| *number);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: api-{current}\nclusters:\n{}contexts:\n{}\
         users:\n  - name: {user}\n    user:\n      token: {token}\n",
        clusters.concat(),
        contexts.concat()
    )
}
