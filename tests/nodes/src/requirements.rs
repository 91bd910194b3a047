//! What a machine needs for two nodes. It looks, and installs nothing.

use std::{env, path::Path};

/// A program, and the package of Debian's that brings it.
const PROGRAMS: [(&str, &str); 10] = [
    ("unshare", "util-linux"),
    ("ip", "iproute2"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("buildah", "buildah"),
    ("curl", "curl"),
    ("prometheus", "prometheus"),
];

/// What is missing here, in one line with the remedy; nothing where nodes can be started.
#[must_use]
pub fn missing() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("nodes need Linux".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("nodes need root: namespaces, control groups and mounts".to_owned());
    }
    if !Path::new("/sys/fs/cgroup/memory").exists() {
        return Some("nodes need control groups of version 1 at /sys/fs/cgroup".to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| env::split_paths(&path).any(|directory| directory.join(program).is_file());
    let mut packages: Vec<_> =
        PROGRAMS.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    if !Path::new("/usr/lib/cni/bridge").exists() {
        packages.push("containernetworking-plugins");
    }
    (!packages.is_empty())
        .then(|| format!("nodes need these packages: apt-get install --no-install-recommends {}", packages.join(" ")))
}
