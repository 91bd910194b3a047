//! Creates large states. It creates one conversation and its claim through the API server, and writes copies of the stored objects with
//! other names into etcd. This takes seconds instead of minutes. The data directory is kept in the cache, and each scenario that needs it
//! uses a copy.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use control_plane::{ControlPlane, repository, tools};
use data_encoding::HEXLOWER;
use kube::api::ObjectMeta;
use ring::digest;
use serde_json::{Value, json};
use switchboard::{
    api::{Conversation, State, Time},
    core::lifecycle::{BindingStatus, Defaults, LifecycleInput, decide},
};

use crate::{
    error::{Error, Result},
    etcd::{CLAIMS, CONVERSATIONS, Etcd},
    machine::Machine,
    workload::{BareClient, Batch, binding},
    world::{Bench, administrator, create_namespace, wait_for_caches},
};

/// Increase it when the same input must produce another state.
const VERSION: u32 = 1;
/// The namespace of the conversations.
pub const NAMESPACE: &str = "bench-seeded";
/// The directory of the CRDs, relative to the root of the repository.
const CRDS: &str = "crds";

/// The state: the number of stored conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// Open, each with a claim, a correct status, and a timer that is due in years.
    Open(usize),
    /// Closed, without claims.
    Closed(usize),
}

impl Seed {
    /// Returns the data directory of an etcd with this state, and creates it if it is not in the cache. `None` for the empty state.
    pub fn data(self, bench: &Bench) -> Result<Option<PathBuf>> {
        let (Self::Open(count) | Self::Closed(count)) = self;
        if count == 0 {
            return Ok(None);
        }
        let data = tools::cache_directory()?.join(format!("bench-{}", self.key(&bench.machine)?));
        if !data.is_dir() {
            bench.progress.step(&format!("seeding {self:?}, once for this machine"));
            self.make(bench, &data)?;
        }
        Ok(Some(data))
    }

    /// The key in the cache. It depends on every input of the state.
    fn key(self, machine: &Machine) -> Result<String> {
        let template = self.template().conversation(0)?;
        let crds = repository::root()?.join(CRDS);
        let parts = [
            format!("{VERSION} {self:?} {} {}", machine.kubernetes, machine.etcd),
            serde_json::to_string(&template)?,
            // The stored status must equal the decision of the operator; otherwise the operator would write all statuses again.
            serde_json::to_string(&decided(&template)?)?,
            read(&crds.join("conversations.yaml"))?,
            read(&crds.join("addressbindings.yaml"))?,
            read(&crds.join("proxyaddresses.yaml"))?,
        ];
        let hash = digest::digest(&digest::SHA256, parts.join("\n").as_bytes());
        Ok(HEXLOWER.encode(&hash.as_ref()[..8]))
    }

    /// A batch that no scenario uses.
    fn template(self) -> Batch {
        match self {
            Self::Open(_) => Batch::seeded(NAMESPACE).close_after("8760h"),
            Self::Closed(_) => Batch::seeded(NAMESPACE).closed(),
        }
    }

    fn make(self, bench: &Bench, data: &Path) -> Result<()> {
        let (Self::Open(count) | Self::Closed(count)) = self;
        let control_plane = ControlPlane::builder().start()?;
        apply_crds(&control_plane)?;
        let batch = self.template();
        bench.runtime.block_on(async {
            let client = administrator(&control_plane).await?;
            create_namespace(&client, NAMESPACE).await?;
            // The API server serves the kinds a moment after they are established.
            wait_for_caches(&control_plane).await?;
            let etcd = Etcd::at(control_plane.etcd().address())?;
            let template = Template::make(&BareClient::new(client), &etcd, &batch).await?;
            // Otherwise the API server would receive a watch event for each copy.
            control_plane.api_server(0).kill();
            template.copy(&etcd, 1..count, |_, _| {}).await
        })?;
        control_plane.etcd().stop();
        // The rename makes sure that only a complete directory exists.
        let partial = data.with_extension(format!("{}", process::id()));
        control_plane::copy_directory(&control_plane.etcd_data(), &partial)?;
        fs::rename(&partial, data).map_err(Error::io("write", data))
    }
}

/// A conversation and its claim as the API server stored them.
pub struct Template {
    batch: Batch,
    conversation: Value,
    claim: Option<Value>,
}

impl Template {
    /// Creates the conversation with number 0 of a batch, its claim if it is open, and the status that the operator would write.
    pub async fn make(client: &BareClient, etcd: &Etcd, batch: &Batch) -> Result<Self> {
        let conversation = batch.conversation(0)?;
        let is_open = conversation.spec.state != Some(State::Closed);
        if is_open {
            client.claim(batch, &conversation).await?;
        }
        let stored = client.create(batch, 0).await?;
        client.status(&stored).await?;
        let mut template = Self {
            conversation: etcd.read(&key_of_conversation(batch, &stored)).await?,
            claim: None,
            batch: batch.clone(),
        };
        if is_open {
            let key = key_of_claim(&stored)?;
            let mut claim = etcd.read(&key).await?;
            claim["spec"]["admissions"][0]["uid"] = template.conversation["metadata"]["uid"].clone();
            etcd.write(std::iter::once((key, claim.clone()))).await?;
            template.claim = Some(claim);
        }
        Ok(template)
    }

    /// The creation time of the conversation and of each copy.
    pub fn creation_time(&self) -> Result<Time> {
        let text = self.conversation["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
        text.parse().map_err(|error| Error::Unexpected(format!("invalid creationTimestamp {text:?}: {error}")))
    }

    /// The name of the copy with this number.
    pub fn name(&self, number: usize) -> Result<String> {
        Ok(self.batch.conversation(number)?.metadata.name.unwrap_or_default())
    }

    /// Stores copies with these numbers. `edit` changes the copy with the given number.
    pub async fn copy(
        &self,
        etcd: &Etcd,
        numbers: impl Iterator<Item = usize>,
        edit: impl Fn(usize, &mut Value),
    ) -> Result<()> {
        let mut failure = Ok(());
        let objects = numbers.map_while(|number| match self.copy_of(number, &edit) {
            Ok(objects) => Some(objects),
            Err(error) => {
                failure = Err(error);
                None
            }
        });
        etcd.write(objects.flatten()).await?;
        failure
    }

    fn copy_of(&self, number: usize, edit: &impl Fn(usize, &mut Value)) -> Result<Vec<(String, Value)>> {
        let spec = self.batch.conversation(number)?;
        let mut conversation = self.conversation.clone();
        let uid = json!(format!("{number:08x}-0000-4000-8000-000000000000"));
        conversation["metadata"]["name"] = json!(spec.metadata.name);
        conversation["metadata"]["uid"] = uid.clone();
        conversation["spec"]["contact"]["address"] = json!(spec.spec.contact.as_ref().map(|contact| &contact.address));
        let name = binding(&spec)?.name();
        edit(number, &mut conversation);
        let mut objects = Vec::new();
        if let Some(claim) = &self.claim {
            conversation["status"]["addressBindingName"] = json!(name.as_str());
            let mut claim = claim.clone();
            claim["metadata"]["name"] = json!(name.as_str());
            claim["metadata"]["uid"] = json!(format!("{number:08x}-0000-4000-8000-000000000001"));
            claim["spec"]["contactAddress"] = conversation["spec"]["contact"]["address"].clone();
            claim["spec"]["conversationRef"]["name"] = conversation["metadata"]["name"].clone();
            claim["spec"]["admissions"][0]["uid"] = uid;
            objects.push((key_of_claim(&spec)?, claim));
        }
        objects.push((key_of_conversation(&self.batch, &spec), conversation));
        Ok(objects)
    }
}

fn key_of_conversation(batch: &Batch, conversation: &Conversation) -> String {
    let reference = batch.reference(conversation);
    format!("{CONVERSATIONS}{}/{}", reference.namespace, reference.name)
}

fn key_of_claim(conversation: &Conversation) -> Result<String> {
    Ok(format!("{CLAIMS}{}", binding(conversation)?.name()))
}

/// The status that the operator decides for a conversation that was created in 1970.
fn decided(conversation: &Conversation) -> Result<Value> {
    let metadata = ObjectMeta { generation: Some(1), ..conversation.metadata.clone() };
    let input = LifecycleInput::of(&Conversation { metadata, ..conversation.clone() });
    let input = input.map_err(|error| Error::Unexpected(error.to_string()))?;
    let binding_status = BindingStatus::Held { name: binding(conversation)?.name(), since: Time::EPOCH };
    let decision = decide(&input, &Defaults::default(), Some(&binding_status), Time::EPOCH);
    Ok(serde_json::to_value(decision.status)?)
}

fn apply_crds(control_plane: &ControlPlane) -> Result<()> {
    let crds = repository::root()?.join(CRDS);
    for arguments in [
        ["apply", "--server-side", "--filename"].as_slice(),
        ["wait", "--for=condition=Established", "--timeout=60s", "--filename"].as_slice(),
    ] {
        let output = control_plane
            .kubectl()
            .args(arguments)
            .arg(&crds)
            .output()
            .map_err(Error::io("run", Path::new("kubectl")))?;
        if !output.status.success() {
            return Err(Error::Unexpected(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}
