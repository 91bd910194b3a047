//! A real control plane for tests and for the playground: one etcd, one or more API servers, and the operator installed from its chart.
//! Only [`tour`] knows about conversations.
//!
//! Everything is synchronous and independent of threads and runtimes, so that one instance in a `static` serves all tests of a process.
//! However a process ends, the servers that it started end with it, and their data are removed. Only the logs are kept if a test failed.
//!
//! ```no_run
//! # fn main() -> Result<(), control_plane::Error> {
//! let control_plane = control_plane::ControlPlane::builder().api_servers(2).start()?;
//! control_plane.kubectl().args(["get", "namespaces"]).status().unwrap();
//! control_plane.api_server(1).kill();
//! # Ok(())
//! # }
//! ```

mod api_server;
pub mod balancer;
mod certificates;
mod controller_manager;
mod data_directory;
mod error;
mod etcd;
mod http;
pub mod installation;
mod kubeconfig;
pub mod kubernetes;
mod ports;
mod process;
mod progress;
mod reaper;
pub mod repository;
pub mod router;
mod server;
pub mod tools;
pub mod tour;
pub mod versions;

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use http::ApiClient;
use ports::Port;

pub use balancer::Balancer;
pub use certificates::{Authority, ServingCertificate, TokenKey};
pub use data_directory::{DataDirectory, copy_directory};
pub use error::Error;
pub use installation::{Builder as InstallationBuilder, Installation, Replica};
pub use kubernetes::Kubernetes;
pub use process::{Process, output, run};
pub use reaper::end_everything;
pub use router::Router;
pub use server::Server;
pub use tools::Tool;

/// The user of the kubeconfig, and its token.
const ADMINISTRATOR: &str = "administrator";

/// The environment variable with the kubeconfig of a running playground, on which tests run instead of starting a control plane.
pub const TEST_CLUSTER: &str = "SWITCHBOARD_TEST_CLUSTER";

/// The kubeconfig in [`TEST_CLUSTER`].
#[must_use]
pub fn test_cluster() -> Option<PathBuf> {
    env::var_os(TEST_CLUSTER).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// kubectl with a kubeconfig, and without the settings of the user. It is built at the first call.
pub fn kubectl(kubeconfig: &Path) -> Result<Command, Error> {
    let [kubectl] = tools::ensure([Tool::Kubectl])?;
    let directory = kubeconfig.parent().unwrap_or(Path::new("")).to_owned();
    Ok(Client { kubeconfig: kubeconfig.to_owned(), directory }.command(&kubectl))
}

/// The settings of a control plane; see [`ControlPlane::builder`].
#[derive(Clone)]
pub struct Builder {
    api_servers: usize,
    fsync: bool,
    etcd_data: Option<PathBuf>,
    namespace_controller: bool,
    api_server_flags: Vec<String>,
    users: Vec<(String, Vec<String>)>,
}

impl Builder {
    /// The number of API servers that share the etcd (default: 1).
    #[must_use]
    pub fn api_servers(mut self, count: usize) -> Self {
        self.api_servers = count.max(1);
        self
    }

    /// Whether etcd waits for the disk, as in production (default: `false`). Benchmarks need it. A killed etcd keeps every acknowledged
    /// write in both cases.
    #[must_use]
    pub fn fsync(mut self, fsync: bool) -> Self {
        self.fsync = fsync;
        self
    }

    /// The initial data of etcd: a copy of the data directory of a stopped etcd (default: empty).
    #[must_use]
    pub fn etcd_data(mut self, directory: impl Into<PathBuf>) -> Self {
        self.etcd_data = Some(directory.into());
        self
    }

    /// Runs the controller of kube-controller-manager that empties deleted namespaces. Without it, their deletion never ends.
    #[must_use]
    pub fn namespace_controller(mut self) -> Self {
        self.namespace_controller = true;
        self
    }

    /// Adds a flag to each API server, as `--name=value`.
    #[must_use]
    pub fn api_server_flag(mut self, flag: impl Into<String>) -> Self {
        self.api_server_flags.push(flag.into());
        self
    }

    /// Adds a user in these groups. Its token is its name: see [`ControlPlane::kubeconfig_for_token`].
    #[must_use]
    pub fn user(mut self, name: &str, groups: &[&str]) -> Self {
        self.users.push((name.to_owned(), groups.iter().map(|&group| group.to_owned()).collect()));
        self
    }

    /// Starts the control plane and returns when it is ready, after about four seconds if the tools are built (see [`tools::ensure`]).
    /// [`kubernetes::VARIABLE`] selects the version of the API servers; the default is the current one. If the start fails, the logs are
    /// kept, and the error contains their path. If [`TEST_CLUSTER`] is set, it starts nothing, because the
    /// caller cannot use that cluster.
    pub fn start(self) -> Result<ControlPlane, Error> {
        if test_cluster().is_some() {
            return Err(Error::TestCluster);
        }
        let [etcd, api_server, kubectl] = tools::ensure([Tool::Etcd, Tool::KubeApiserver, Tool::Kubectl])?;
        let directory = Arc::new(DataDirectory::create()?);
        self.start_in(Arc::clone(&directory), &etcd, &api_server, kubectl).inspect_err(|_| directory.keep_logs())
    }

    fn start_in(
        self,
        directory: Arc<DataDirectory>,
        etcd: &Path,
        api_server: &Path,
        kubectl: PathBuf,
    ) -> Result<ControlPlane, Error> {
        let authority = Authority::new("control plane")?;
        let serving = authority.issue("kube-apiserver")?;
        let token_key = certificates::TokenKey::new()?;
        let etcd_port = Port::reserve()?;
        let ports = (0..self.api_servers).map(|_| Port::reserve()).collect::<Result<Vec<_>, _>>()?;
        let addresses: Vec<SocketAddr> = ports.iter().map(Port::address).collect();
        let numbered: Vec<_> = (1..).zip(addresses.iter().copied()).collect();
        let client = Client {
            kubeconfig: directory.write(
                "kubeconfig",
                &kubeconfig::kubeconfig(authority.certificate(), &numbered, ADMINISTRATOR, ADMINISTRATOR),
            )?,
            directory: directory.path().to_owned(),
        };

        let as_administrator = |address: &SocketAddr| {
            ApiClient::new(*address, authority.certificate(), ADMINISTRATOR).map_err(Error::Client)
        };
        let clients = addresses.iter().map(as_administrator).collect::<Result<Vec<_>, _>>()?;

        if let Some(data) = &self.etcd_data {
            copy_directory(data, &directory.path().join(etcd::DATA))?;
        }
        let etcd = etcd::start(etcd, &directory, &etcd_port, self.fsync)?;
        let plan = api_server::Plan {
            binary: api_server,
            directory: &directory,
            etcd: etcd.address(),
            certificate: &directory.write("api-server.crt", &serving.certificate)?,
            key: &directory.write("api-server.key", &serving.key)?,
            token_key_private: &directory.write("token.key", &token_key.private)?,
            token_key_public: &directory.write("token.pub", &token_key.public)?,
            tokens: &directory.write("tokens.csv", &self.tokens())?,
            flags: &self.api_server_flags,
        };
        let api_servers = numbered
            .iter()
            .zip(&clients)
            .map(|((number, address), client)| plan.server(*number, *address, client.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        thread::scope(|scope| {
            let starting: Vec<_> = api_servers.iter().map(|server| scope.spawn(|| server.start())).collect();
            // `join` fails only after a panic, and the scope joins the other threads.
            starting.into_iter().filter_map(|thread| thread.join().ok()).collect::<Result<Vec<_>, _>>()
        })?;
        let controller_manager = if self.namespace_controller {
            Some(controller_manager::start(&directory, &client.kubeconfig)?)
        } else {
            None
        };
        Ok(ControlPlane {
            _controller_manager: controller_manager,
            api_servers,
            etcd,
            authority,
            client,
            clients,
            kubectl,
            addresses,
            directory,
            _ports: ports,
        })
    }

    /// The static token file: token, user, uid, groups.
    fn tokens(&self) -> String {
        let administrator = (ADMINISTRATOR.to_owned(), vec!["system:masters".to_owned()]);
        let users = self.users.iter().chain([&administrator]);
        let line = |(name, groups): &(String, Vec<String>)| format!("{name},{name},{name},\"{}\"\n", groups.join(","));
        users.map(line).collect::<Vec<_>>().concat()
    }
}

/// An etcd and its API servers, which are ready. On drop they are killed, and their data are removed.
pub struct ControlPlane {
    // Fields are dropped from top to bottom: servers, then data, then the reservations of ports.
    _controller_manager: Option<Process>,
    api_servers: Vec<Server>,
    etcd: Server,
    authority: Authority,
    client: Client,
    clients: Vec<ApiClient>,
    kubectl: PathBuf,
    addresses: Vec<SocketAddr>,
    directory: Arc<DataDirectory>,
    _ports: Vec<Port>,
}

impl ControlPlane {
    /// The defaults are one API server, etcd without fsync, and an administrator.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            api_servers: 1,
            fsync: false,
            etcd_data: None,
            namespace_controller: false,
            api_server_flags: Vec::new(),
            users: Vec::new(),
        }
    }

    /// The API servers, in the order of their contexts.
    #[must_use]
    pub fn api_servers(&self) -> &[Server] {
        &self.api_servers
    }

    /// The API server of the context `api-{index + 1}`.
    ///
    /// # Panics
    /// If there are fewer API servers.
    #[must_use]
    pub fn api_server(&self, index: usize) -> &Server {
        &self.api_servers[index]
    }

    /// The store behind all API servers.
    #[must_use]
    pub fn etcd(&self) -> &Server {
        &self.etcd
    }

    /// The data directory of etcd. To restore a backup, stop etcd, replace the directory, and start etcd again.
    #[must_use]
    pub fn etcd_data(&self) -> PathBuf {
        self.data_dir().join(etcd::DATA)
    }

    /// The kubeconfig of the administrator, with a context for each API server (`api-1`, `api-2`, …). `api-1` is the current one.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.client.kubeconfig
    }

    /// Returns a kubeconfig, as YAML, for the user with this token at this API server.
    ///
    /// # Panics
    /// If there are fewer API servers.
    #[must_use]
    pub fn kubeconfig_for_token(&self, token: &str, api_server: usize) -> String {
        let server = (api_server + 1, self.addresses[api_server]);
        kubeconfig::kubeconfig(self.authority.certificate(), &[server], "user", token)
    }

    /// kubectl as the administrator, at `api-1` unless `--context` selects another. It ignores the configuration of the user.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        self.client.command(&self.kubectl)
    }

    /// helm as the administrator, built at the first call. It ignores the configuration of the user.
    pub fn helm(&self) -> Result<Command, Error> {
        let [helm] = tools::ensure([Tool::Helm])?;
        Ok(self.client.command(&helm))
    }

    /// A shell that runs `line` as a user types it: `kubectl` is the one of this control plane, and the administrator uses it.
    #[must_use]
    pub fn shell(&self, line: &str) -> Command {
        let path = env::var_os("PATH").unwrap_or_default();
        let directories = self.kubectl.parent().map(PathBuf::from).into_iter().chain(env::split_paths(&path));
        let directories = env::join_paths(directories).unwrap_or(path);
        let mut shell = self.client.command(Path::new("sh"));
        shell.args(["-c", line]).env("PATH", directories);
        shell
    }

    /// The directory of its data and its logs.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.directory.path()
    }

    /// Keeps the logs after a failure that is not a panic, and returns their path. A panic keeps them automatically.
    pub fn keep_logs(&self) -> PathBuf {
        self.directory.keep_logs();
        self.data_dir().join("logs")
    }
}

/// Runs command line clients without the configuration of the user.
#[derive(Clone)]
struct Client {
    kubeconfig: PathBuf,
    directory: PathBuf,
}

impl Client {
    fn command(&self, binary: &Path) -> Command {
        let mut command = Command::new(binary);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.directory.join("kubectl-cache"))
            .env("KUBERC", "off")
            .env("HELM_CACHE_HOME", self.directory.join("helm-cache"))
            .env("HELM_CONFIG_HOME", self.directory.join("helm-config"))
            .env("HELM_DATA_HOME", self.directory.join("helm-data"))
            // Developers with several clusters set these variables, and helm prefers them to the kubeconfig.
            .env_remove("HELM_KUBECONTEXT")
            .env_remove("HELM_NAMESPACE")
            .env_remove("HELM_KUBEAPISERVER")
            .env_remove("HELM_KUBETOKEN");
        command
    }
}
