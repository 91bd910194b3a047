//! A control plane with switchboard, and the two states between which a scenario alternates: with the webhook and the policies in force,
//! and bare, with only the CRDs of switchboard.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use control_plane::{ControlPlane, Installation, installation::NAMESPACE};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration},
    coordination::v1::Lease,
    core::v1::Namespace,
};
use kube::{
    Api, Client, Config, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use switchboard::api::{AddressBinding, Conversation};
use tokio::{runtime::Runtime, time::sleep};

use crate::{
    error::{Error, Result},
    etcd::{CLAIMS, CONVERSATIONS, Etcd},
    machine::Machine,
    options::Options,
    process,
    progress::Progress,
    workload,
};

/// The time limit for all conditions. It is far longer than they need.
pub const TIMEOUT: Duration = Duration::from_mins(5);
/// The interval between two checks of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The name of the objects of the chart.
const NAME: &str = "switchboard";
/// The name of the Lease.
const LEASE: &str = "switchboard";
/// The holder of the Lease while no replica may lead.
const BENCH_HOLDER: &str = "bench";
/// The lease duration of [`BENCH_HOLDER`], in seconds: a day.
const LONG_LEASE_SECONDS: i32 = 86_400;
/// The namespace of the sentinel. Creates for its binding show whether the chart is in force.
pub const SENTINEL: &str = "bench-sentinel";

/// The shared state of all scenarios.
pub struct Bench {
    /// The options.
    pub options: Options,
    /// The progress display.
    pub progress: Progress,
    /// The runtime of the clients.
    pub runtime: Runtime,
    /// The binary of the operator.
    pub operator: PathBuf,
    /// The machine.
    pub machine: Machine,
}

/// One control plane with its installation.
pub struct World<'a> {
    bench: &'a Bench,
    // It is dropped first, so that the replicas end before the control plane.
    installation: Installation,
    control_plane: ControlPlane,
    administrator: Client,
    switched_off: Option<Switches>,
}

/// The objects that are removed to make the API server bare.
struct Switches {
    webhook: ValidatingWebhookConfiguration,
    policies: Vec<ValidatingAdmissionPolicyBinding>,
}

/// The initial state of a world.
#[derive(Default)]
pub struct Setup {
    /// The data directory of a seeded etcd; `None` for an empty one.
    pub data: Option<PathBuf>,
    /// The number of replicas of the operator, at least 1.
    pub replicas: usize,
    /// Whether a replica leads from the start.
    pub leads: bool,
    /// The namespace in which the router may create conversations; without one, its account and roles are not installed.
    pub router_namespace: Option<&'static str>,
    /// More flags for the API server.
    pub api_server_flags: Vec<String>,
}

impl<'a> World<'a> {
    /// Starts a world with the chart in force. It waits until the API server has read the seeded objects.
    pub fn start(bench: &'a Bench, setup: &Setup) -> Result<Self> {
        bench.progress.step("starting etcd, API server and operator");
        let mut builder = ControlPlane::builder().fsync(true);
        if let Some(data) = &setup.data {
            builder = builder.etcd_data(data);
        }
        for flag in &setup.api_server_flags {
            builder = builder.api_server_flag(flag);
        }
        let control_plane = builder.start()?;
        let administrator = bench.runtime.block_on(administrator(&control_plane))?;
        if setup.data.is_some() {
            bench.progress.step("waiting until the API server has read the stored objects");
            bench.runtime.block_on(wait_for_caches(&control_plane))?;
        }
        if !setup.leads {
            bench.runtime.block_on(async {
                create_namespace(&administrator, NAMESPACE).await?;
                take_lease(&administrator).await
            })?;
        }
        let mut installation = Installation::builder(&bench.operator).replicas(setup.replicas.max(1));
        if setup.data.is_some() {
            // The seeded state contains the CRDs, and helm does not take over objects that it did not create.
            installation = installation.set("crds.enabled", "false");
        }
        if let Some(namespace) = setup.router_namespace {
            bench.runtime.block_on(create_namespace(&administrator, namespace))?;
            for (value, text) in [
                ("router.enabled", "true"),
                ("router.sources.gateway.type", "CloudEvents"),
                ("router.sources.gateway.secretName", "gateway"),
                ("router.autocreateNamespaces[0]", namespace),
            ] {
                installation = installation.set(value, text);
            }
        }
        let installation = installation.install(&control_plane)?;
        let world = Self { bench, installation, control_plane, administrator, switched_off: None };
        bench.runtime.block_on(async {
            create_namespace(&world.administrator, SENTINEL).await?;
            let sentinel = Api::namespaced(world.administrator.clone(), SENTINEL);
            ignoring(409, sentinel.create(&PostParams::default(), &workload::sentinel("holder")?).await)
        })?;
        if setup.leads {
            world.wait_for_leader()?;
        }
        Ok(world)
    }

    /// The client of the administrator.
    pub fn administrator(&self) -> Client {
        self.administrator.clone()
    }

    /// Creates clients, each with its own open connection to the API server.
    pub async fn clients(&self, count: usize) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(administrator(&self.control_plane).await?);
        }
        connect(&clients).await?;
        Ok(clients)
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The installation with its replicas.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// A client of etcd.
    pub fn etcd(&self) -> Result<Etcd> {
        Etcd::at(self.control_plane.etcd().address())
    }

    /// Creates the namespace if it does not exist.
    pub fn namespace(&self, name: &str) -> Result<()> {
        self.bench.runtime.block_on(create_namespace(&self.administrator, name))
    }

    /// Removes the conversations of a namespace and all claims except that of the sentinel, directly in etcd.
    pub fn empty(&self, namespace: &str) -> Result<()> {
        let etcd = self.etcd()?;
        self.bench.runtime.block_on(async {
            etcd.clear(&format!("{CONVERSATIONS}{namespace}/")).await?;
            etcd.clear(&format!("{CLAIMS}{}-", workload::CLAIM_PREFIX)).await
        })
    }

    /// Puts the chart in force and starts replica 1. `leads` decides whether it may lead.
    pub fn in_force(&mut self, leads: bool) -> Result<()> {
        let replica = self.installation.replica(0);
        replica.kill();
        let runtime = &self.bench.runtime;
        runtime.block_on(take_lease(&self.administrator))?;
        replica.start()?;
        if let Some(Switches { webhook, policies }) = self.switched_off.take() {
            runtime.block_on(async {
                create_all(&self.administrator, &[webhook]).await?;
                create_all(&self.administrator, &policies).await
            })?;
        }
        runtime.block_on(self.wait_until(true))?;
        if leads {
            self.release_lease()?;
            self.wait_for_leader()?;
        }
        Ok(())
    }

    /// Removes the webhook and the policies, and kills the replicas. Only the CRDs remain.
    pub fn bare(&mut self) -> Result<()> {
        self.installation.replicas().iter().for_each(|replica| replica.kill());
        let runtime = &self.bench.runtime;
        if self.switched_off.is_none() {
            self.switched_off = Some(runtime.block_on(async {
                let webhook = remove_all(&self.administrator, NAME).await?.pop();
                let webhook = webhook.ok_or_else(|| Error::Unexpected("the chart has no webhook".to_owned()))?;
                Ok::<_, Error>(Switches { webhook, policies: remove_all(&self.administrator, NAME).await? })
            })?);
        }
        runtime.block_on(self.wait_until(false))
    }

    /// Restarts every replica. The first one leads, the others are standbys.
    pub fn restart_all(&self) -> Result<()> {
        self.installation.replicas().iter().for_each(|replica| replica.kill());
        self.release_lease()?;
        for replica in self.installation.replicas() {
            replica.start()?;
            self.wait_for_leader()?;
        }
        Ok(())
    }

    /// Waits until the replicas use almost no processor time.
    pub fn wait_until_at_rest(&self) -> Result<()> {
        self.bench.progress.step("waiting until the operator is at rest");
        let replicas: Vec<_> = self.installation.replicas().iter().map(|replica| replica.id()).collect();
        process::wait_until_at_rest(&replicas)
    }

    /// Releases the Lease as an ending leader does. A deleted Lease would count as held until its expiry.
    fn release_lease(&self) -> Result<()> {
        self.bench.runtime.block_on(write_lease(&self.administrator, "", 1))
    }

    /// Waits until the API server applies a change of the chart's objects, which takes a moment.
    async fn wait_until(&self, in_force: bool) -> Result<()> {
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let conversations = Api::namespaced(self.administrator.clone(), SENTINEL);
        let claims = Api::<AddressBinding>::all(self.administrator.clone());
        let (rival, claim) = (workload::sentinel("rival")?, workload::foreign_claim()?);
        let is_expected = |answer: kube::Result<()>| match answer {
            Ok(()) => !in_force,
            Err(kube::Error::Api(status)) => in_force && status.code == 403,
            Err(_) => false,
        };
        until(if in_force { "the chart in force" } else { "the chart out of force" }, async || {
            is_expected(conversations.create(&dry_run, &rival).await.map(drop))
                && is_expected(claims.create(&dry_run, &claim).await.map(drop))
        })
        .await
    }

    fn wait_for_leader(&self) -> Result<()> {
        let leases = Api::<Lease>::namespaced(self.administrator.clone(), NAMESPACE);
        self.bench.runtime.block_on(until("a replica that leads", async || {
            let lease = leases.get_opt(LEASE).await.ok().flatten();
            let holder = lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default();
            !holder.is_empty() && holder != BENCH_HOLDER
        }))
    }
}

/// Waits until `condition` is true.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !condition().await {
        if Instant::now() >= deadline {
            return Err(Error::Unexpected(format!("waited {} s for {what}", TIMEOUT.as_secs())));
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Creates a client for the administrator of a control plane.
pub async fn administrator(control_plane: &ControlPlane) -> Result<Client> {
    client(Kubeconfig::read_from(control_plane.kubeconfig())?).await
}

async fn client(kubeconfig: Kubeconfig) -> Result<Client> {
    Ok(Client::try_from(config(kubeconfig).await?)?)
}

async fn config(kubeconfig: Kubeconfig) -> Result<Config> {
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

async fn connect(clients: &[Client]) -> Result<()> {
    for client in clients {
        client.apiserver_version().await?;
    }
    Ok(())
}

/// Waits until the caches of the API server are filled. Until then it answers watches with 429, and the waiting time would count as time
/// of the operator.
pub async fn wait_for_caches(control_plane: &ControlPlane) -> Result<()> {
    let mut config = config(Kubeconfig::read_from(control_plane.kubeconfig())?).await?;
    // The default retry would double its delay each time.
    config.default_retry = false;
    let client = Client::try_from(config)?;
    // The selector matches no object. Otherwise each watch would start with all stored objects.
    let watch = WatchParams::default().fields("metadata.name=none");
    let conversations = Api::<Conversation>::all(client.clone());
    let claims = Api::<AddressBinding>::all(client);
    until("the API server's conversations", async || conversations.watch(&watch, "0").await.is_ok()).await?;
    until("the API server's claims", async || claims.watch(&watch, "0").await.is_ok()).await
}

/// Creates a namespace if it does not exist.
pub async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    ignoring(409, Api::all(client.clone()).create(&PostParams::default(), &namespace).await)
}

/// Takes the Lease from the replicas for a day, so that none of them leads.
async fn take_lease(client: &Client) -> Result<()> {
    write_lease(client, BENCH_HOLDER, LONG_LEASE_SECONDS).await
}

async fn write_lease(client: &Client, holder: &str, seconds: i32) -> Result<()> {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEASE, "namespace": NAMESPACE},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds},
    });
    let leases = Api::<Lease>::namespaced(client.clone(), NAMESPACE);
    leases.patch(LEASE, &PatchParams::apply(BENCH_HOLDER).force(), &Patch::Apply(lease)).await?;
    Ok(())
}

/// Removes the objects of a kind whose names have this prefix, and returns them in a form that can be created again.
pub async fn remove_all<K>(client: &Client, prefix: &str) -> Result<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let objects = Api::<K>::all(client.clone());
    let mut removed = Vec::new();
    for mut object in objects.list(&ListParams::default()).await? {
        let metadata = object.meta_mut();
        let name = metadata.name.clone().unwrap_or_default();
        if !name.starts_with(prefix) {
            continue;
        }
        (metadata.uid, metadata.resource_version, metadata.managed_fields) = (None, None, None);
        objects.delete(&name, &DeleteParams::default()).await?;
        removed.push(object);
    }
    Ok(removed)
}

/// Creates objects.
pub async fn create_all<K>(client: &Client, objects: &[K]) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let api = Api::<K>::all(client.clone());
    for object in objects {
        api.create(&PostParams::default(), object).await?;
    }
    Ok(())
}

fn ignoring<T>(code: u16, result: kube::Result<T>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == code => Ok(()),
        Err(error) => Err(error.into()),
    }
}
