//! A control plane and two nodes. etcd, the API servers, the controller manager and the scheduler run as processes on the first node.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use control_plane::{DataDirectory, Process, Tool, output, run, tools};

use crate::{
    Error, Result, network,
    node::{self, Node},
    pki::{Pki, flag},
    wait,
};

/// The port of the API server that all components of the cluster use.
const PORT: u16 = 6443;

/// The time limit on a loaded machine for steps that usually take seconds.
const READY_TIMEOUT: Duration = Duration::from_mins(3);

/// A cluster of two nodes that are ready. It ends when this value is dropped or this process ends.
pub struct Cluster {
    // The fields are dropped from top to bottom.
    control_plane: Vec<(String, Process)>,
    nodes: [Node; 2],
    binaries: Binaries,
    pki: Pki,
    kubeconfig: PathBuf,
    directory: Arc<DataDirectory>,
}

struct Binaries {
    api_server: PathBuf,
    etcd: PathBuf,
    kubectl: PathBuf,
    helm: PathBuf,
    controller_manager: PathBuf,
    scheduler: PathBuf,
}

impl Cluster {
    /// Starts a cluster, and returns when both nodes are ready, after about twenty seconds if the tools are built. If it fails, the logs
    /// are kept.
    ///
    /// # Errors
    /// If a requirement is missing, or a component does not become ready.
    pub fn start() -> Result<Self> {
        let [api_server, etcd, kubectl, helm, controller_manager, scheduler, ..] = tools::ensure(Tool::NODES)?;
        let directory = Arc::new(DataDirectory::create()?);
        directory.remove_cgroups(&node::cgroups(&directory));
        let pki = Pki::new(&directory)?;
        let kubeconfig = pki.kubeconfig(&directory, "administrator", Some("system:masters"), PORT)?;
        let nodes = [Node::new(1, &directory, &pki, PORT)?, Node::new(2, &directory, &pki, PORT)?];
        let binaries = Binaries { api_server, etcd, kubectl, helm, controller_manager, scheduler };
        let mut cluster = Self { control_plane: Vec::new(), nodes, binaries, pki, kubeconfig, directory };
        cluster.start_in_place().inspect_err(|_| cluster.directory.keep_logs())?;
        Ok(cluster)
    }

    fn start_in_place(&mut self) -> Result<()> {
        let pause = node::pause_image(&self.directory)?;
        self.boot(|cluster| cluster.import(&pause))?;
        self.wait_for_nodes()
    }

    /// Powers on both nodes, and starts their components.
    fn boot(&mut self, prepare: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let namespaces = [self.nodes[0].power_on()?, self.nodes[1].power_on()?];
        network::join([&namespaces[0], &namespaces[1]])?;
        for (node, namespaces) in self.nodes.iter_mut().zip(namespaces) {
            node.start(namespaces)?;
        }
        prepare(self)?;
        self.start_control_plane()
    }

    fn start_control_plane(&mut self) -> Result<()> {
        let mut etcd = self.on_first_node(&self.binaries.etcd)?;
        etcd.arg("--data-dir").arg(self.directory.path().join("etcd"));
        let url = "http://127.0.0.1:2379";
        etcd.args(["--listen-client-urls", url, "--advertise-client-urls", url]);
        self.spawn("etcd", etcd)?;
        self.start_api_server(PORT)?;
        let user = |name: &str| self.pki.kubeconfig(&self.directory, name, None, PORT);
        let mut controller_manager = self.on_first_node(&self.binaries.controller_manager)?;
        controller_manager
            .arg(flag("kubeconfig", &user("system:kube-controller-manager")?))
            .arg(flag("service-account-private-key-file", &self.pki.token_private))
            .arg(flag("root-ca-file", &self.pki.ca))
            .args(["--use-service-account-credentials", "--leader-elect=false", "--bind-address=127.0.0.1"]);
        let mut scheduler = self.on_first_node(&self.binaries.scheduler)?;
        scheduler
            .arg(flag("kubeconfig", &user("system:kube-scheduler")?))
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
        self.spawn("kube-controller-manager", controller_manager)?;
        self.spawn("kube-scheduler", scheduler)
    }

    /// Starts another API server on the same etcd, or restarts one after a power cut, and returns when it is ready. Each API server has its
    /// own connections to the webhook.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_api_server(&mut self, port: u16) -> Result<()> {
        let mut command = self.on_first_node(&self.binaries.api_server)?;
        let Pki { ca, api_server, kubelet_client, token_private, token_public, .. } = &self.pki;
        command
            .args(["--etcd-servers", "http://127.0.0.1:2379", "--bind-address", "0.0.0.0"])
            .arg(format!("--advertise-address={}", network::address(1)))
            .arg(format!("--secure-port={port}"))
            .arg(format!("--service-cluster-ip-range={}", network::SERVICES))
            .arg(flag("client-ca-file", ca))
            .arg(flag("tls-cert-file", &api_server.certificate))
            .arg(flag("tls-private-key-file", &api_server.key))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(flag("service-account-signing-key-file", token_private))
            .arg(flag("service-account-key-file", token_public))
            .args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"])
            .arg(flag("kubelet-client-certificate", &kubelet_client.certificate))
            .arg(flag("kubelet-client-key", &kubelet_client.key))
            .arg(flag("kubelet-certificate-authority", ca))
            .arg("--kubelet-preferred-address-types=InternalIP");
        if port != PORT {
            // The Service `kubernetes` belongs to the first API server.
            command.arg("--endpoint-reconciler-type=none");
        }
        self.spawn(&format!("kube-apiserver-{port}"), command)?;
        let kubeconfig = self.kubeconfig_at(port)?;
        wait(&format!("the API server at port {port}"), READY_TIMEOUT, || {
            let mut kubectl = self.kubectl().map_err(|error| error.to_string())?;
            kubectl.env("KUBECONFIG", &kubeconfig).args(["get", "--request-timeout=2s", "--raw", "/readyz"]);
            run(&mut kubectl).map(drop).map_err(|error| error.to_string())
        })
    }

    fn on_first_node(&self, binary: &Path) -> Result<Command> {
        Ok(self.nodes[0].namespaces()?.command(binary))
    }

    fn spawn(&mut self, name: &str, command: Command) -> Result<()> {
        let process = Process::new(name, self.directory.log(name), command)?;
        process.start()?;
        self.control_plane.push((name.to_owned(), process));
        Ok(())
    }

    /// Runs a program on the first node until the power is cut. Its output goes to a log with this name.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run_on_first_node(&mut self, name: &str, program: &Path, arguments: &[String]) -> Result<()> {
        let mut command = self.on_first_node(program)?;
        command.args(arguments);
        self.spawn(name, command)
    }

    /// Ends the program with this name.
    pub fn end_on_first_node(&mut self, name: &str) {
        self.control_plane.retain(|(known, _)| known != name);
    }

    fn wait_for_nodes(&self) -> Result<()> {
        wait("both nodes to be ready", READY_TIMEOUT, || {
            let failed = |error: Error| error.to_string();
            run(self.kubectl().map_err(failed)?.args([
                "wait",
                "--for=condition=Ready",
                "--timeout=5s",
                "node/node-1",
                "node/node-2",
            ]))
            .map(drop)
            .map_err(|error| format!("{error}\n{}", self.nodes[0].kubelet_log()))
        })
    }

    /// Ends all processes on both nodes immediately, including the control plane. Their disks keep their data.
    pub fn cut_power(&mut self) {
        for node in &mut self.nodes {
            node.power_off();
        }
        self.control_plane.clear();
    }

    /// Powers on both nodes again, and returns when the API server is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn restore_power(&mut self) -> Result<()> {
        self.boot(|_| Ok(()))
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node; 2] {
        &self.nodes
    }

    /// Imports an image on both nodes.
    ///
    /// # Errors
    /// If containerd does not take it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| {
            wait(&format!("{} to import an image", node.name()), READY_TIMEOUT, || {
                node.import(archive).map_err(|error| error.to_string())
            })
        })
    }

    /// The kubeconfig of the administrator for the API server at this port, for programs in the network of the first node.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn kubeconfig_at(&self, port: u16) -> Result<PathBuf> {
        self.pki.kubeconfig(&self.directory, "administrator", Some("system:masters"), port)
    }

    /// The kubeconfig of the administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// kubectl as the administrator.
    ///
    /// # Errors
    /// If the first node has no power.
    pub fn kubectl(&self) -> Result<Command> {
        self.client(&self.binaries.kubectl)
    }

    /// helm as the administrator.
    ///
    /// # Errors
    /// If the first node has no power.
    pub fn helm(&self) -> Result<Command> {
        self.client(&self.binaries.helm)
    }

    /// Runs a client without the configuration of the user.
    fn client(&self, binary: &Path) -> Result<Command> {
        let mut command = self.nodes[0].namespaces()?.client(binary);
        command.env("KUBECONFIG", &self.kubeconfig).env("KUBERC", "off");
        for (name, directory) in [
            ("KUBECACHEDIR", "kubectl-cache"),
            ("HELM_CACHE_HOME", "helm-cache"),
            ("HELM_CONFIG_HOME", "helm-config"),
            ("HELM_DATA_HOME", "helm-data"),
        ] {
            command.env(name, self.directory.path().join(directory));
        }
        for name in ["HELM_KUBECONTEXT", "HELM_NAMESPACE", "HELM_KUBEAPISERVER", "HELM_KUBETOKEN"] {
            command.env_remove(name);
        }
        Ok(command)
    }

    /// Runs kubectl with these arguments, and returns its output.
    ///
    /// # Errors
    /// If it fails; the error contains its output.
    pub fn kubectl_run(&self, arguments: &[&str]) -> Result<String> {
        Ok(run(self.kubectl()?.args(arguments))?)
    }

    /// Runs kubectl with these arguments, which must fail, and returns its output.
    ///
    /// # Errors
    /// If it succeeds.
    pub fn kubectl_refused(&self, arguments: &[&str]) -> Result<String> {
        let output = output(self.kubectl()?.args(arguments))?;
        let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return Err(Error::Unexpected(format!("kubectl {} succeeded: {printed}", arguments.join(" "))));
        }
        Ok(printed.into_owned())
    }

    /// Writes a file that is removed with the cluster.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        Ok(self.directory.write(name, content)?)
    }

    /// The directory of the cluster.
    #[must_use]
    pub fn directory(&self) -> &DataDirectory {
        &self.directory
    }

    /// Keeps the logs after a failure, and returns their directory.
    pub fn keep_logs(&self) -> PathBuf {
        self.directory.keep_logs();
        self.directory.path().join("logs")
    }
}
