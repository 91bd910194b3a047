//! The requirements of two nodes. The check leaves nothing behind and installs nothing.

use std::{env, fs, io, path::Path, process::Command};

use control_plane::output;

/// Programs, each with its Debian package.
const PROGRAMS: [(&str, &str); 11] = [
    ("unshare", "util-linux"),
    ("ip", "iproute2"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("buildah", "buildah"),
    ("curl", "curl"),
    ("git", "git"),
    ("prometheus", "prometheus"),
];

/// Returns one line with the missing requirement and its remedy, or `None` if nodes can be started.
#[must_use]
pub fn missing() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("nodes need Linux".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("nodes need root: namespaces, control groups and mounts".to_owned());
    }
    if let Err(error) = try_cgroup() {
        return Some(format!("nodes need writable control groups of version 1 at /sys/fs/cgroup: {error}"));
    }
    if !Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        return Some("nodes need the kernel module br_netfilter: modprobe br_netfilter".to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| env::split_paths(&path).any(|directory| directory.join(program).is_file());
    let mut packages: Vec<_> =
        PROGRAMS.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    if !Path::new("/usr/lib/cni/bridge").exists() {
        packages.push("containernetworking-plugins");
    }
    if !packages.is_empty() {
        let packages = packages.join(" ");
        return Some(format!("nodes need these packages: apt-get install --no-install-recommends {packages}"));
    }
    match output(Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "true"])) {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("nodes need namespaces: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("nodes need namespaces: {error}")),
    }
}

/// Creates a control group, and removes it.
fn try_cgroup() -> io::Result<()> {
    let group = format!("/sys/fs/cgroup/memory/switchboard-probe-{}", std::process::id());
    fs::create_dir(&group)?;
    fs::remove_dir(&group)
}
