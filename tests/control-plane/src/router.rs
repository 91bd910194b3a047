//! Runs the router under its service account, with its sources and their keys in files, as the chart mounts them.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{ControlPlane, Error, Server, http, installation::NAMESPACE, ports::Port, process::run};

/// The service account of the router, in the namespace of the release.
const SERVICE_ACCOUNT: &str = "switchboard-router";

/// The user that the router is to the API server.
pub const ROUTER: &str = "system:serviceaccount:switchboard-system:switchboard-router";

/// What to run; see [`Router::builder`].
pub struct Builder {
    program: PathBuf,
    name: String,
    api_server: usize,
    sources: Vec<(String, String)>,
    keys: Vec<(String, String, String)>,
    signing: Option<String>,
    flags: Vec<OsString>,
    kubeconfig: Option<String>,
}

impl Builder {
    /// The API server that it talks to: the first unless set.
    #[must_use]
    pub fn api_server(mut self, index: usize) -> Self {
        self.api_server = index;
        self
    }

    /// A kubeconfig, as YAML, instead of that of its service account.
    #[must_use]
    pub fn kubeconfig(mut self, kubeconfig: impl Into<String>) -> Self {
        self.kubeconfig = Some(kubeconfig.into());
        self
    }

    /// A source. `settings` is its entry in the file of the sources, such as `{type: CloudEvents}`.
    #[must_use]
    pub fn source(mut self, name: &str, settings: &str) -> Self {
        self.sources.push((name.to_owned(), settings.to_owned()));
        self
    }

    /// A key in the Secret of a source.
    #[must_use]
    pub fn key(mut self, source: &str, name: &str, value: &str) -> Self {
        self.keys.push((source.to_owned(), name.to_owned(), value.to_owned()));
        self
    }

    /// The secret by which it signs events; none unless set.
    #[must_use]
    pub fn signing_secret(mut self, secret: &str) -> Self {
        self.signing = Some(secret.to_owned());
        self
    }

    /// One more flag, as `--name=value`.
    #[must_use]
    pub fn flag(mut self, flag: impl Into<OsString>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Starts it, and returns when it is ready.
    pub fn start(&self, control_plane: &ControlPlane) -> Result<Router, Error> {
        let router = self.prepare(control_plane)?;
        router.start().inspect_err(|_| drop(control_plane.keep_logs()))?;
        Ok(router)
    }

    /// The router, without starting it.
    pub fn prepare(&self, control_plane: &ControlPlane) -> Result<Router, Error> {
        let directory = &control_plane.directory;
        let name = &self.name;
        let kubeconfig = if let Some(kubeconfig) = &self.kubeconfig {
            kubeconfig.clone()
        } else {
            let arguments = ["create", "token", SERVICE_ACCOUNT, "--duration=8760h", "-n", NAMESPACE];
            let token = run(control_plane.kubectl().args(arguments))?;
            control_plane.kubeconfig_for_token(token.trim(), self.api_server)
        };
        let root = directory.path().join(name);
        let secrets = root.join("secrets");
        for (source, _) in &self.sources {
            let path = secrets.join(source);
            std::fs::create_dir_all(&path).map_err(Error::io(format!("create {}", path.display())))?;
        }
        let sources: Vec<_> = self.sources.iter().map(|(name, settings)| format!("{name}: {settings}")).collect();
        let sources = directory.write(&format!("{name}/sources.yaml"), &sources.join("\n"))?;
        let [inbound, health] = [Port::reserve()?, Port::reserve()?];
        let mut command = Command::new(&self.program);
        command
            .arg("route")
            .args(["--inbound-address", &inbound.address().to_string()])
            .args(["--health-address", &health.address().to_string()])
            .arg("--sources-file")
            .arg(sources)
            .arg("--secrets-directory")
            .arg(&secrets)
            .env("KUBECONFIG", directory.write(&format!("{name}.kubeconfig"), &kubeconfig)?);
        if let Some(secret) = &self.signing {
            let path = root.join("signing");
            std::fs::create_dir_all(&path).map_err(Error::io(format!("create {}", path.display())))?;
            directory.write(&format!("{name}/signing/secret"), secret)?;
            command.arg("--signing-secrets-directory").arg(path);
        }
        command.args(&self.flags);
        let address = health.address();
        let ready = Box::new(move || http::is_ok(address, "/readyz"));
        let server = Server::new(name, directory.log(name), command, address, ready)?;
        let router = Router { server, inbound, secrets, _health: health };
        for (source, name, value) in &self.keys {
            router.set_key(source, name, value)?;
        }
        Ok(router)
    }
}

/// A router. Its ports stay the same over restarts. It is killed when this is dropped.
pub struct Router {
    server: Server,
    inbound: Port,
    secrets: PathBuf,
    _health: Port,
}

impl Router {
    /// A router whose program is `program`, without sources, under a name that no other router of the control plane has.
    #[must_use]
    pub fn builder(program: impl AsRef<Path>, name: &str) -> Builder {
        Builder {
            program: program.as_ref().to_owned(),
            name: name.to_owned(),
            api_server: 0,
            sources: Vec::new(),
            keys: Vec::new(),
            signing: None,
            flags: Vec::new(),
            kubeconfig: None,
        }
    }

    /// The address at which messages arrive.
    #[must_use]
    pub fn inbound_address(&self) -> SocketAddr {
        self.inbound.address()
    }

    /// Sets a key in the Secret of a source. The router takes it up within seconds.
    pub fn set_key(&self, source: &str, name: &str, value: &str) -> Result<(), Error> {
        let path = self.secrets.join(source).join(name);
        std::fs::write(&path, value).map_err(Error::io(format!("write {}", path.display())))
    }

    /// Removes a key from the Secret of a source.
    pub fn remove_key(&self, source: &str, name: &str) -> Result<(), Error> {
        let path = self.secrets.join(source).join(name);
        std::fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))
    }
}

/// A router is a server: it is started, killed and paused like any other. Its address is that of its health endpoints.
impl std::ops::Deref for Router {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
