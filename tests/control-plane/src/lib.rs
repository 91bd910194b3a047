//! A real control plane for tests and for the playground: one etcd, as many API servers as asked, and the operator installed from its
//! chart. Nothing here knows what a conversation is but [`tour`].
//!
//! Everything is synchronous and bound to no thread and no runtime, so that one instance in a `static` serves all tests of a
//! process. Whatever way a process ends, what it started here ends with it, and its data are removed; only the logs stay where a
//! test failed.
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
pub use server::Server;
pub use tools::Tool;

/// The user of the kubeconfig, and its token.
const ADMINISTRATOR: &str = "administrator";

/// The environment variable that names the kubeconfig of a playground that is up, for tests to run on it.
pub const TEST_CLUSTER: &str = "SWITCHBOARD_TEST_CLUSTER";

/// The kubeconfig that the environment names by [`TEST_CLUSTER`], if it does.
#[must_use]
pub fn test_cluster() -> Option<PathBuf> {
    env::var_os(TEST_CLUSTER).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// kubectl as the user of a kubeconfig, built at the first call. Of the user's own settings it sees nothing.
pub fn kubectl(kubeconfig: &Path) -> Result<Command, Error> {
    let [kubectl] = tools::ensure([Tool::Kubectl])?;
    let directory = kubeconfig.parent().unwrap_or(Path::new("")).to_owned();
    Ok(Client { kubeconfig: kubeconfig.to_owned(), directory }.command(&kubectl))
}

/// What kind of control plane to start; see [`ControlPlane::builder`].
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
    /// How many API servers share the etcd: 1 unless set.
    #[must_use]
    pub fn api_servers(mut self, count: usize) -> Self {
        self.api_servers = count.max(1);
        self
    }

    /// Whether etcd waits for the disk, as it does in production: `false` unless set. A benchmark wants it, and what is to show
    /// durability; what a killed etcd had acknowledged is there again either way.
    #[must_use]
    pub fn fsync(mut self, fsync: bool) -> Self {
        self.fsync = fsync;
        self
    }

    /// What etcd begins with: a copy of the data directory of one that was stopped. Nothing unless set.
    #[must_use]
    pub fn etcd_data(mut self, directory: impl Into<PathBuf>) -> Self {
        self.etcd_data = Some(directory.into());
        self
    }

    /// Runs the part of kube-controller-manager that empties namespaces which are being deleted; without it they stay for ever.
    #[must_use]
    pub fn namespace_controller(mut self) -> Self {
        self.namespace_controller = true;
        self
    }

    /// One more flag for each API server, as `--name=value`.
    #[must_use]
    pub fn api_server_flag(mut self, flag: impl Into<String>) -> Self {
        self.api_server_flags.push(flag.into());
        self
    }

    /// One more user, in these groups. Its token is its name: see [`ControlPlane::kubeconfig_for_token`].
    #[must_use]
    pub fn user(mut self, name: &str, groups: &[&str]) -> Self {
        self.users.push((name.to_owned(), groups.iter().map(|&group| group.to_owned()).collect()));
        self
    }

    /// Starts it and returns when it is ready: some four seconds when the tools are built (see [`tools::ensure`]). The API servers are
    /// of the version of Kubernetes that [`kubernetes::VARIABLE`] asks for, else of the current one. The logs stay when it fails; the
    /// error says where. Where [`TEST_CLUSTER`] is set it starts nothing, since what asks for it cannot use that one.
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
            // Joined by the scope if a panic comes between; `join` fails only after one.
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

/// etcd and API servers, ready. They are killed when this is dropped, and their data removed.
pub struct ControlPlane {
    // The fields are dropped from top to bottom: servers, then data, then the ports' reservations.
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
    /// One API server, etcd without fsync, and an administrator, unless asked otherwise.
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
    /// When there are not as many.
    #[must_use]
    pub fn api_server(&self, index: usize) -> &Server {
        &self.api_servers[index]
    }

    /// The store behind all API servers.
    #[must_use]
    pub fn etcd(&self) -> &Server {
        &self.etcd
    }

    /// Where etcd has its data. To restore a backup, stop etcd, replace the directory, and start etcd again.
    #[must_use]
    pub fn etcd_data(&self) -> PathBuf {
        self.data_dir().join(etcd::DATA)
    }

    /// The file for the administrator: a context for each API server (`api-1`, `api-2`, …), of which `api-1` is the current one.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.client.kubeconfig
    }

    /// A kubeconfig, as YAML, for whoever has that token, at that API server.
    ///
    /// # Panics
    /// When there are not as many API servers.
    #[must_use]
    pub fn kubeconfig_for_token(&self, token: &str, api_server: usize) -> String {
        let server = (api_server + 1, self.addresses[api_server]);
        kubeconfig::kubeconfig(self.authority.certificate(), &[server], "user", token)
    }

    /// kubectl as the administrator, at `api-1` unless `--context` says otherwise. Of the user's own settings it sees nothing.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        self.client.command(&self.kubectl)
    }

    /// helm as the administrator, built at the first call. Of the user's own settings it sees nothing.
    pub fn helm(&self) -> Result<Command, Error> {
        let [helm] = tools::ensure([Tool::Helm])?;
        Ok(self.client.command(&helm))
    }

    /// Where it keeps its data and its logs.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.directory.path()
    }

    /// Something failed that this cannot know of (a panic it notices by itself): the logs are to stay. Returns where.
    pub fn keep_logs(&self) -> PathBuf {
        self.directory.keep_logs();
        self.data_dir().join("logs")
    }
}

/// Runs command line clients with nothing of the user's own configuration.
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
            // Set where a developer works with several clusters, and helm heeds them before the kubeconfig.
            .env_remove("HELM_KUBECONTEXT")
            .env_remove("HELM_NAMESPACE")
            .env_remove("HELM_KUBEAPISERVER")
            .env_remove("HELM_KUBETOKEN");
        command
    }
}
