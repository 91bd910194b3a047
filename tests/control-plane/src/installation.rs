//! Installs the operator as a user does, from its chart with helm, and runs replicas of it under its service account: outside the
//! cluster, since here is no kubelet. The API servers call them through a [`Balancer`].

use std::{
    ffi::{OsStr, OsString},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use data_encoding::BASE64;

use crate::{
    Authority, Balancer, ControlPlane, Error, Server,
    http::{self, ApiClient, Call},
    ports::Port,
    process::{POLL, run},
    repository,
};

/// The namespace of the release, and of the operator's service account and Lease.
pub const NAMESPACE: &str = "switchboard-system";

/// The user that the operator is to the API server: its service account.
pub const OPERATOR: &str = "system:serviceaccount:switchboard-system:switchboard";

/// The chart, from the root of the repository.
const CHART: &str = "charts/switchboard";

/// How long the API servers have to take up the chart's objects. It takes about a second.
const IN_FORCE_WITHIN: Duration = Duration::from_mins(1);

/// What to install; see [`Installation::builder`].
pub struct Builder {
    operator: PathBuf,
    replicas: usize,
    start: bool,
    values: Vec<String>,
    flags: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    makes_its_certificate: bool,
}

impl Builder {
    /// How many replicas of the operator run: 1 unless set. Replica `i` talks to API server `i` modulo their number.
    #[must_use]
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// Whether the replicas are started: `true` unless set. Else the webhook cannot be called until one is, by its
    /// [`shell_line`](Server::shell_line) or as a [`Server`].
    #[must_use]
    pub fn start(mut self, start: bool) -> Self {
        self.start = start;
        self
    }

    /// One more value for the chart, as `helm --set`.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.values.push(format!("{key}={value}"));
        self
    }

    /// One more flag for each replica, as `--name=value`.
    #[must_use]
    pub fn flag(mut self, flag: impl Into<OsString>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// One more environment variable for each replica.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The operator makes its own certificate and writes the `caBundle`, as it does unless told otherwise; else a test brings one.
    #[must_use]
    pub fn self_managed(mut self) -> Self {
        self.makes_its_certificate = true;
        self
    }

    /// Installs the chart and starts the replicas. Returns when every API server has the policies and the webhook in force and
    /// every replica that is started is ready. The logs stay when it fails.
    pub fn install(&self, control_plane: &ControlPlane) -> Result<Installation, Error> {
        self.install_in(control_plane).inspect_err(|_| drop(control_plane.keep_logs()))
    }

    fn install_in(&self, control_plane: &ControlPlane) -> Result<Installation, Error> {
        let authority = Authority::new("webhook")?;
        let balancer = Balancer::start()?;
        self.install_chart(control_plane, &authority, &balancer)?;
        let probes = Probes { api_servers: &control_plane.clients };
        probes.wait_for_the_chart()?;

        let serving = authority.issue("switchboard")?;
        let files = Files {
            certificate: control_plane.directory.write("webhook.crt", &serving.certificate)?,
            key: control_plane.directory.write("webhook.key", &serving.key)?,
        };
        let token =
            run(control_plane.kubectl().args(["create", "token", "switchboard", "--duration=8760h", "-n", NAMESPACE]))?;
        let replicas = (0..self.replicas)
            .map(|index| self.replica(control_plane, index, token.trim(), &files))
            .collect::<Result<Vec<_>, _>>()?;
        if self.start {
            // All of them at once, and then each is waited for.
            replicas.iter().try_for_each(|replica| replica.server.start_without_waiting())?;
            replicas.iter().try_for_each(|replica| replica.server.wait_until_ready())?;
        }
        for replica in &replicas {
            balancer.add(replica.webhook_address());
        }
        if self.start && !replicas.is_empty() {
            probes.wait_for_the_webhook()?;
        }
        Ok(Installation { replicas, balancer, authority })
    }

    fn install_chart(
        &self,
        control_plane: &ControlPlane,
        authority: &Authority,
        balancer: &Balancer,
    ) -> Result<(), Error> {
        let mut helm = control_plane.helm()?;
        helm.args(["upgrade", "--install", "switchboard"])
            .arg(repository::root()?.join(CHART))
            .args(["--namespace", NAMESPACE, "--create-namespace"])
            .args(["--set", "deployment.enabled=false"])
            .args(["--set-string", &format!("webhook.url=https://{}/admit", balancer.address())]);
        if !self.makes_its_certificate {
            let bundle = BASE64.encode(authority.certificate().as_bytes());
            helm.args(["--set-string", &format!("webhook.caBundle={bundle}")]);
        }
        for value in &self.values {
            helm.args(["--set", value]);
        }
        run(&mut helm).map(drop)
    }

    fn replica(
        &self,
        control_plane: &ControlPlane,
        index: usize,
        token: &str,
        files: &Files,
    ) -> Result<Replica, Error> {
        let name = name_of(index);
        let [webhook, health] = [Port::reserve()?, Port::reserve()?];
        let api_server = index % control_plane.api_servers().len();
        let kubeconfig = control_plane.kubeconfig_for_token(token, api_server);
        let mut command = Command::new(&self.operator);
        command
            .arg("run")
            .args(["--webhook-address", &webhook.address().to_string()])
            .args(["--health-address", &health.address().to_string()])
            .args(["--namespace", NAMESPACE, "--identity", &name])
            .env("KUBECONFIG", control_plane.directory.write(&format!("{name}.kubeconfig"), &kubeconfig)?)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        if self.makes_its_certificate {
            command.args(["--webhook-dns-name", &webhook.address().ip().to_string()]);
        } else {
            command.args([OsStr::new("--tls-cert-file"), files.certificate.as_os_str()]);
            command.args([OsStr::new("--tls-key-file"), files.key.as_os_str()]);
        }
        command.args(&self.flags);
        let address = health.address();
        let ready = Box::new(move || http::is_ok(address, "/readyz"));
        let server = Server::new(&name, control_plane.directory.log(&name), command, address, ready)?;
        Ok(Replica { server, webhook, _health: health })
    }
}

struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// The operator, installed and running. Its replicas are killed when this is dropped; what was installed stays.
pub struct Installation {
    replicas: Vec<Replica>,
    balancer: Balancer,
    authority: Authority,
}

impl Installation {
    /// One replica of the operator whose binary is `operator`, and the chart's own values, unless asked otherwise. Tests name the
    /// binary as `env!("CARGO_BIN_EXE_switchboard")`.
    #[must_use]
    pub fn builder(operator: impl AsRef<Path>) -> Builder {
        Builder {
            operator: operator.as_ref().to_owned(),
            replicas: 1,
            start: true,
            values: Vec::new(),
            flags: Vec::new(),
            environment: Vec::new(),
            makes_its_certificate: false,
        }
    }

    /// All replicas.
    #[must_use]
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// The index of the replica that is called so in the Lease, where something random follows its name.
    #[must_use]
    pub fn index_of(&self, identity: &str) -> Option<usize> {
        (0..self.replicas.len()).find(|index| identity.starts_with(&format!("{}_", name_of(*index))))
    }

    /// The replica with this index, whose identity is `replica-{index + 1}`.
    ///
    /// # Panics
    /// When there are not as many.
    #[must_use]
    pub fn replica(&self, index: usize) -> &Replica {
        &self.replicas[index]
    }

    /// What the API servers call. Take a replica out of it as a Service would before it is stopped.
    #[must_use]
    pub fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Who signed the certificate of the webhook.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
}

/// A running operator. Its ports and its identity stay the same over restarts.
pub struct Replica {
    server: Server,
    webhook: Port,
    _health: Port,
}

impl Replica {
    /// Where it serves admission, behind the balancer.
    #[must_use]
    pub fn webhook_address(&self) -> SocketAddr {
        self.webhook.address()
    }
}

/// A replica is a server: it is started, killed and paused like any other. Its address is that of its health endpoints.
impl std::ops::Deref for Replica {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// Requests that tell whether an API server has taken up what helm has stored: it does so a moment later, and until then would let
/// pass what a test expects to be refused. None of them changes what is stored but the conversation that the last one needs.
struct Probes<'a> {
    api_servers: &'a [ApiClient],
}

const CLAIMS: &str = "/apis/switchboard.dev/v1alpha1/addressbindings?dryRun=All";
const CONVERSATIONS: &str = "/apis/switchboard.dev/v1alpha1/namespaces/switchboard-system/conversations";
const CLAIM: &str = r#"{"apiVersion": "switchboard.dev/v1alpha1", "kind": "AddressBinding", "metadata": {"name": "installation-probe"},
    "spec": {"channel": "Chat", "contactAddress": "a", "proxyAddress": "b", "conversationRef": {"namespace": "a", "name": "a"},
        "admissions": []}}"#;
const FORGED_STATUS: &str = r#"{"status": {"state": "Closed"}}"#;

impl Probes<'_> {
    /// While no replica runs, the webhook is in force exactly when it cannot be called.
    fn wait_for_the_chart(&self) -> Result<(), Error> {
        let dry_run = format!("{CONVERSATIONS}?dryRun=All");
        for api_server in self.api_servers {
            await_answer(api_server, &Call::Create(&conversation(true)), &dry_run, &["failed calling webhook"])?;
            await_answer(api_server, &Call::Create(CLAIM), CLAIMS, &["switchboard-claims"])?;
        }
        let Some(first) = self.api_servers.first() else { return Ok(()) };
        request(first, &Call::Create(&conversation(false)), CONVERSATIONS)?;
        let stored = format!("{CONVERSATIONS}/installation-probe");
        for api_server in self.api_servers {
            let status = format!("{stored}/status?dryRun=All");
            await_answer(api_server, &Call::Merge(FORGED_STATUS), &status, &["switchboard-status"])?;
        }
        request(first, &Call::Delete, &stored).map(drop)
    }

    /// The webhook answers every API server. An installation that requires a ProxyAddress denies the probe.
    fn wait_for_the_webhook(&self) -> Result<(), Error> {
        self.api_servers.iter().try_for_each(|api_server| {
            let dry_run = format!("{CONVERSATIONS}?dryRun=All");
            await_answer(api_server, &Call::Create(&conversation(true)), &dry_run, &[r#""uid":"#, "48028: "])
        })
    }
}

/// The conversation of the probes.
fn conversation(has_contact: bool) -> String {
    let contact = if has_contact { r#", "contact": {"address": "installation-probe"}"# } else { "" };
    format!(
        r#"{{"apiVersion": "switchboard.dev/v1alpha1", "kind": "Conversation", "metadata": {{"name": "installation-probe"}},
        "spec": {{"channel": "Chat", "proxy": {{"address": "installation-probe-proxy"}}{contact}}}}}"#
    )
}

fn name_of(index: usize) -> String {
    format!("replica-{}", index + 1)
}

/// Repeats a request to one API server until its answer contains one of the texts in `expected`.
fn await_answer(api_server: &ApiClient, call: &Call<'_>, path: &str, expected: &[&str]) -> Result<(), Error> {
    let deadline = Instant::now() + IN_FORCE_WITHIN;
    loop {
        let answer = api_server.call(call, path).map_or_else(|error| error, |answer| answer.body);
        if expected.iter().any(|expected| answer.contains(expected)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                what: format!("{expected:?} in the answer to {path}"),
                within: IN_FORCE_WITHIN,
                last: answer.trim().to_owned(),
            });
        }
        thread::sleep(POLL);
    }
}

/// A request that must succeed; returns the body of the answer.
fn request(api_server: &ApiClient, call: &Call<'_>, path: &str) -> Result<String, Error> {
    let failed = |answer| Error::Request { request: path.to_owned(), answer };
    let answer = api_server.call(call, path).map_err(failed)?;
    if (200..300).contains(&answer.status) { Ok(answer.body) } else { Err(failed(answer.body)) }
}
