//! A control plane with switchboard installed, and the two states between which a scenario goes back and forth: with the webhook
//! and the policies in force, and bare, with nothing of switchboard but its CRDs.

use std::{
    path::PathBuf,
    thread,
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

/// How long anything that is waited for may take: far longer than it does.
pub const TIMEOUT: Duration = Duration::from_mins(5);
/// How often a condition is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(20);

/// The chart's name for its objects.
const NAME: &str = "switchboard";
/// The name of the Lease.
const LEASE: &str = "switchboard";
/// Who holds the Lease while no replica is to lead.
const NOBODY: &str = "bench";
/// A day.
const FOR_LONG: i32 = 86_400;
/// The namespace of a conversation whose binding is asked for again and again, to see what is in force.
pub const SENTINEL: &str = "bench-sentinel";

/// What all scenarios share.
pub struct Bench {
    /// What is asked for.
    pub options: Options,
    /// Where it is told what is being done.
    pub progress: Progress,
    /// What the clients run on.
    pub runtime: Runtime,
    /// The binary of the operator.
    pub operator: PathBuf,
    /// On what it runs.
    pub machine: Machine,
}

/// One control plane with its installation.
pub struct World<'a> {
    bench: &'a Bench,
    // Dropped first: the replicas end before what they talk to.
    installation: Installation,
    control_plane: ControlPlane,
    administrator: Client,
    switched_off: Option<Switches>,
}

/// What makes the difference between a chart in force and a bare API server.
struct Switches {
    webhook: ValidatingWebhookConfiguration,
    policies: Vec<ValidatingAdmissionPolicyBinding>,
}

/// What a world begins with.
#[derive(Default)]
pub struct Setup {
    /// The data directory of a seeded etcd; none: an empty one.
    pub data: Option<PathBuf>,
    /// How many replicas of the operator run: 1 unless more.
    pub replicas: usize,
    /// Whether a replica leads from the start.
    pub leads: bool,
    /// More flags for the API server.
    pub api_server_flags: Vec<String>,
}

impl<'a> World<'a> {
    /// Starts one, with the chart in force and, where something is stored, known to the API server.
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
            bench.progress.step("waiting until the API server has read what is stored");
            bench.runtime.block_on(wait_for_the_caches(&control_plane))?;
        }
        if !setup.leads {
            bench.runtime.block_on(async {
                create_namespace(&administrator, NAMESPACE).await?;
                take_the_lease(&administrator).await
            })?;
        }
        let mut installation = Installation::builder(&bench.operator).replicas(setup.replicas.max(1));
        if setup.data.is_some() {
            // They are part of what was seeded, and helm takes over nothing that it did not make.
            installation = installation.set("crds.enabled", "false");
        }
        let installation = installation.install(&control_plane)?;
        let world = Self { bench, installation, control_plane, administrator, switched_off: None };
        bench.runtime.block_on(async {
            create_namespace(&world.administrator, SENTINEL).await?;
            let sentinel = Api::namespaced(world.administrator.clone(), SENTINEL);
            ignoring(409, sentinel.create(&PostParams::default(), &workload::sentinel("holder")?).await)
        })?;
        if setup.leads {
            world.wait_for_a_leader()?;
        }
        Ok(world)
    }

    /// A client for the administrator, who made all that is made here.
    pub fn administrator(&self) -> Client {
        self.administrator.clone()
    }

    /// Clients with a connection each, made already: as many users of the API server.
    pub async fn clients(&self, count: usize) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(administrator(&self.control_plane).await?);
        }
        connect(&clients).await?;
        Ok(clients)
    }

    /// The replicas.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The store.
    pub fn etcd(&self) -> Result<Etcd> {
        Etcd::at(self.control_plane.etcd().address())
    }

    /// A namespace that is there.
    pub fn namespace(&self, name: &str) -> Result<()> {
        self.bench.runtime.block_on(create_namespace(&self.administrator, name))
    }

    /// Removes the conversations of a namespace and every claim but the sentinel's, at one blow.
    pub fn empty(&self, namespace: &str) -> Result<()> {
        let etcd = self.etcd()?;
        self.bench.runtime.block_on(async {
            etcd.clear(&format!("{CONVERSATIONS}{namespace}/")).await?;
            etcd.clear(&format!("{CLAIMS}{}-", workload::CLAIM_PREFIX)).await
        })
    }

    /// The chart in force and replica 1 running, with or without the right to lead.
    pub fn in_force(&mut self, leads: bool) -> Result<()> {
        let replica = self.installation.replica(0);
        replica.kill();
        let runtime = &self.bench.runtime;
        runtime.block_on(take_the_lease(&self.administrator))?;
        replica.start()?;
        if let Some(Switches { webhook, policies }) = self.switched_off.take() {
            runtime.block_on(async {
                create_all(&self.administrator, &[webhook]).await?;
                create_all(&self.administrator, &policies).await
            })?;
        }
        runtime.block_on(self.wait_until(true))?;
        if leads {
            self.give_the_lease_back()?;
            self.wait_for_a_leader()?;
        }
        Ok(())
    }

    /// Nothing of switchboard but its CRDs: no webhook, no policy, no replica.
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

    /// Every replica anew: the first one leads, the others stand by.
    pub fn restart_all(&self) -> Result<()> {
        self.installation.replicas().iter().for_each(|replica| replica.kill());
        self.give_the_lease_back()?;
        for replica in self.installation.replicas() {
            replica.start()?;
            self.wait_for_a_leader()?;
        }
        Ok(())
    }

    /// Returns when no replica does anything to speak of.
    pub fn wait_until_at_rest(&self) -> Result<()> {
        const INTERVAL: Duration = Duration::from_secs(1);
        const TO_SPEAK_OF: f64 = 0.03;
        self.bench.progress.step("waiting until the operator is at rest");
        let used = || -> Result<f64> {
            self.installation.replicas().iter().map(|replica| process::processor_seconds(replica)).sum()
        };
        let deadline = Instant::now() + TIMEOUT;
        // Twice in a row, since a process that waits for the API server is at rest too.
        let (mut before, mut at_rest) = (used()?, 0);
        while at_rest < 2 {
            if Instant::now() >= deadline {
                return Err(Error::Unexpected("the operator does not come to rest".to_owned()));
            }
            thread::sleep(INTERVAL);
            let now = used()?;
            at_rest = if now - before < TO_SPEAK_OF { at_rest + 1 } else { 0 };
            before = now;
        }
        Ok(())
    }

    /// As a leader does that ends: a Lease that is deleted counts as held until it would have expired.
    fn give_the_lease_back(&self) -> Result<()> {
        self.bench.runtime.block_on(write_the_lease(&self.administrator, "", 1))
    }

    /// The API server takes up what the chart's objects say a moment after they were written.
    async fn wait_until(&self, in_force: bool) -> Result<()> {
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let conversations = Api::namespaced(self.administrator.clone(), SENTINEL);
        let claims = Api::<AddressBinding>::all(self.administrator.clone());
        let (rival, claim) = (workload::sentinel("rival")?, workload::foreign_claim()?);
        let is_so = |answer: kube::Result<()>| match answer {
            Ok(()) => !in_force,
            Err(kube::Error::Api(status)) => in_force && status.code == 403,
            Err(_) => false,
        };
        until(if in_force { "the chart in force" } else { "the chart out of force" }, async || {
            is_so(conversations.create(&dry_run, &rival).await.map(drop))
                && is_so(claims.create(&dry_run, &claim).await.map(drop))
        })
        .await
    }

    fn wait_for_a_leader(&self) -> Result<()> {
        let leases = Api::<Lease>::namespaced(self.administrator.clone(), NAMESPACE);
        self.bench.runtime.block_on(until("a replica that leads", async || {
            let lease = leases.get_opt(LEASE).await.ok().flatten();
            let holder = lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default();
            !holder.is_empty() && holder != NOBODY
        }))
    }
}

/// Returns when it is so.
pub async fn until(what: &str, is_so: impl AsyncFn() -> bool) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so().await {
        if Instant::now() >= deadline {
            return Err(Error::Unexpected(format!("waited {} s for {what}", TIMEOUT.as_secs())));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// A client for the administrator of a control plane.
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

/// An API server takes requests before it has read what etcd has, which would count as time that the operator needs. Until then it
/// answers a watch with 429.
pub async fn wait_for_the_caches(control_plane: &ControlPlane) -> Result<()> {
    let mut config = config(Kubeconfig::read_from(control_plane.kubeconfig())?).await?;
    // It would wait twice as long each time.
    config.default_retry = false;
    let client = Client::try_from(config)?;
    // One that shows nothing: each would begin with all that is stored.
    let watch = WatchParams::default().fields("metadata.name=none");
    let conversations = Api::<Conversation>::all(client.clone());
    let claims = Api::<AddressBinding>::all(client);
    until("the API server's conversations", async || conversations.watch(&watch, "0").await.is_ok()).await?;
    until("the API server's claims", async || claims.watch(&watch, "0").await.is_ok()).await
}

/// Creates a namespace, if there is none yet.
pub async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    ignoring(409, Api::all(client.clone()).create(&PostParams::default(), &namespace).await)
}

/// From now on no replica leads: those that run have the Lease taken from them, and find it held for a day.
async fn take_the_lease(client: &Client) -> Result<()> {
    write_the_lease(client, NOBODY, FOR_LONG).await
}

async fn write_the_lease(client: &Client, holder: &str, seconds: i32) -> Result<()> {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEASE, "namespace": NAMESPACE},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds},
    });
    let leases = Api::<Lease>::namespaced(client.clone(), NAMESPACE);
    leases.patch(LEASE, &PatchParams::apply(NOBODY).force(), &Patch::Apply(lease)).await?;
    Ok(())
}

/// Removes what there is of a kind whose name begins so, and returns it as it is to be created again.
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

/// Creates them.
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
