//! A node: containerd, a kubelet and a kube-proxy in their own namespaces. Its disk survives a power cut, its memory does not.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use control_plane::{DataDirectory, Process, Tool, run, tools};

use crate::{
    Error, Result,
    namespaces::Namespaces,
    network,
    pki::{Pki, flag},
    wait,
};

/// The image of a pod's sandbox.
const PAUSE_IMAGE: &str = "localhost/pause:1";

/// The paths of the programs of a node.
struct Binaries {
    kubelet: PathBuf,
    kube_proxy: PathBuf,
    pause: PathBuf,
}

/// A node. Its files stay the same after a power cut.
pub struct Node {
    number: u8,
    name: String,
    binaries: Binaries,
    directory: PathBuf,
    logs: PathBuf,
    running: Option<Running>,
}

/// A node that has power.
struct Running {
    // The fields are dropped from top to bottom. The namespaces end last, with all processes in them.
    kube_proxy: Process,
    kubelet: Process,
    _containerd: Process,
    namespaces: Namespaces,
}

impl Node {
    /// Creates the node with this number, 1 or 2, and writes its files. It has no power yet.
    ///
    /// # Errors
    /// If a file cannot be written, or a tool cannot be built.
    pub fn new(number: u8, directory: &DataDirectory, pki: &Pki, port: u16) -> Result<Self> {
        let [kubelet, kube_proxy, pause] = tools::ensure([Tool::Kubelet, Tool::KubeProxy, Tool::Pause])?;
        let name = format!("node-{number}");
        let path = directory.path().join(&name);
        fs::create_dir_all(path.join("plugins")).map_err(|error| Error::io("create a node's directory", error))?;
        let cgroup = format!("{}/{name}", cgroups(directory));
        create_cgroup(&cgroup)?;
        directory.write(&format!("{name}/plugins/10-pods.conflist"), &network::plugins(number))?;
        directory.write(&format!("{name}/containerd.toml"), &containerd(&path))?;
        let serving = pki.kubelet_serving(directory, &name, network::address(number))?;
        let user = format!("system:node:{name}");
        pki.kubeconfig(directory, &user, Some("system:nodes"), port)?;
        let kubelet_configuration = serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": false,
            "failSwapOn": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{cgroup}"),
            // The cluster has no DNS, because switchboard does not need it.
            "clusterDNS": ["10.79.0.10"],
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": pki.ca},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": serving.certificate,
            "tlsPrivateKeyFile": serving.key,
            // Other programs also fill the disk of the machine, so the kubelet must not evict pods or remove images.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        });
        directory.write(&format!("{name}/kubelet.yaml"), &kubelet_configuration.to_string())?;
        let proxy_user = pki.kubeconfig(directory, "system:kube-proxy", None, port)?;
        let proxy_configuration = serde_json::json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": proxy_user},
            "mode": "nftables",
            "clusterCIDR": network::PODS,
            "detectLocalMode": "ClusterCIDR",
            // These settings belong to the network of the machine.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        });
        directory.write(&format!("{name}/kube-proxy.yaml"), &proxy_configuration.to_string())?;
        let kubeconfig = format!("{}-{port}.kubeconfig", user.replace(':', "-"));
        fs::rename(directory.path().join(kubeconfig), path.join("kubelet.kubeconfig"))
            .map_err(|error| Error::io("name the kubelet's kubeconfig", error))?;
        Ok(Self {
            number,
            logs: directory.path().join("logs"),
            directory: path,
            name,
            binaries: Binaries { kubelet, kube_proxy, pause },
            running: None,
        })
    }

    /// Its name in the cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address in the network of the nodes. Pods reach it too.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        network::address(self.number)
    }

    /// Creates its namespaces. Nothing runs in them yet.
    pub(crate) fn power_on(&self) -> Result<Namespaces> {
        Namespaces::new(&self.name, &self.directory, self.log("namespaces"), &self.binaries.pause)
    }

    /// Starts containerd, the kubelet and kube-proxy.
    pub(crate) fn start(&mut self, namespaces: Namespaces) -> Result<()> {
        let file = |name: &str| self.directory.join(name);
        let mut containerd = namespaces.command("containerd");
        containerd.arg("--config").arg(file("containerd.toml"));
        let containerd = self.process("containerd", containerd)?;
        let root = PathBuf::from(format!("/proc/{}/root", namespaces.id()));
        let socket = root.join("run/containerd/containerd.sock");
        wait(&format!("containerd of {}", self.name), Duration::from_mins(1), || {
            if socket.exists() { Ok(()) } else { Err(containerd.log_tail()) }
        })?;
        let mut kubelet = namespaces.command(&self.binaries.kubelet);
        kubelet
            .arg(flag("config", &file("kubelet.yaml")))
            .arg(flag("kubeconfig", &file("kubelet.kubeconfig")))
            .arg(format!("--hostname-override={}", self.name))
            .arg(format!("--node-ip={}", self.address()));
        let kubelet = self.process("kubelet", kubelet)?;
        let mut kube_proxy = namespaces.command(&self.binaries.kube_proxy);
        kube_proxy.arg(flag("config", &file("kube-proxy.yaml"))).arg(format!("--hostname-override={}", self.name));
        let kube_proxy = self.process("kube-proxy", kube_proxy)?;
        self.running = Some(Running { kube_proxy, kubelet, _containerd: containerd, namespaces });
        Ok(())
    }

    fn process(&self, name: &str, command: Command) -> Result<Process> {
        let process = Process::new(format!("{name} of {}", self.name), self.log(name), command)?;
        process.start()?;
        Ok(process)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{}-{name}.log", self.name))
    }

    /// Ends all its processes immediately. Its disk keeps its data.
    pub fn power_off(&mut self) {
        self.running = None;
    }

    /// Its namespaces.
    ///
    /// # Errors
    /// If it has no power.
    pub fn namespaces(&self) -> Result<&Namespaces> {
        self.running().map(|running| &running.namespaces)
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().ok_or_else(|| Error::Unexpected(format!("{} has no power", self.name)))
    }

    /// Stops kube-proxy and removes its rules. No Service is reachable, as on a node that has just started.
    ///
    /// # Errors
    /// If its rules cannot be removed.
    pub fn stop_kube_proxy(&self) -> Result<()> {
        let running = self.running()?;
        running.kube_proxy.stop();
        run(running.namespaces.command("nft").args(["delete", "table", "ip", "kube-proxy"]))?;
        Ok(())
    }

    /// Starts kube-proxy again.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_kube_proxy(&self) -> Result<()> {
        Ok(self.running()?.kube_proxy.start()?)
    }

    /// The end of the kubelet's log, for a message.
    #[must_use]
    pub fn kubelet_log(&self) -> String {
        self.running.as_ref().map(|running| running.kubelet.log_tail()).unwrap_or_default()
    }

    /// Imports the image in an archive, so that the node does not pull it.
    ///
    /// # Errors
    /// If containerd rejects it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let mut ctr = self.namespaces()?.command("ctr");
        run(ctr.args(["--namespace", "k8s.io", "images", "import"]).arg(archive))?;
        Ok(())
    }
}

/// The name of the control groups of a cluster.
pub(crate) fn cgroups(directory: &DataDirectory) -> String {
    directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Creates a control group in each hierarchy of version 1. A new group of the cpuset hierarchy has no processors until they are set.
fn create_cgroup(name: &str) -> Result<()> {
    let failed = |error| Error::io(format!("create the control group {name}"), error);
    for hierarchy in fs::read_dir("/sys/fs/cgroup").map_err(failed)? {
        let hierarchy = hierarchy.map_err(failed)?.path();
        if !hierarchy.join("cgroup.procs").exists() {
            continue;
        }
        let mut group = hierarchy.clone();
        for part in name.split('/') {
            let parent = group.clone();
            group.push(part);
            fs::create_dir_all(&group).map_err(failed)?;
            for setting in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read_to_string(parent.join(setting))
                    && group.join(setting).exists()
                {
                    fs::write(group.join(setting), value).map_err(failed)?;
                }
            }
        }
    }
    Ok(())
}

fn containerd(directory: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE the OOM score of a process cannot be lowered.
  restrict_oom_score_adj = true

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{}/plugins"
"#,
        directory.display()
    )
}

/// Builds the image of sandboxes in `directory`, and returns its archive.
///
/// # Errors
/// If buildah cannot build it.
pub(crate) fn pause_image(directory: &DataDirectory) -> Result<PathBuf> {
    let [pause] = tools::ensure([Tool::Pause])?;
    let context = directory.path().join("pause");
    let failed = |error| Error::io("package the image of sandboxes", error);
    fs::create_dir_all(&context).map_err(failed)?;
    fs::copy(pause, context.join("pause")).map_err(failed)?;
    fs::set_permissions(context.join("pause"), fs::Permissions::from_mode(0o555)).map_err(failed)?;
    fs::write(
        context.join("Containerfile"),
        "FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT [\"/pause\"]\n",
    )
    .map_err(failed)?;
    crate::image::build(&context, &context.join("Containerfile"), PAUSE_IMAGE, directory)
}
