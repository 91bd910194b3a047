//! Scenario 9: compares switchboard with alternatives. It measures creates per second, and counts the duplicate conversations that each
//! alternative permits when 50 clients race for one binding.

use control_plane::Authority;
use data_encoding::BASE64;
use k8s_openapi::api::{
    admissionregistration::v1::{
        ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
    },
    coordination::v1::Lease,
};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use switchboard::api::Conversation;

use super::races::{RACERS, create, race};
use crate::{
    error::{Error, Result},
    load::drive,
    lookup::Lookup,
    report::{Row, Unit, as_f64},
    workload::{Batch, binding, sentinel},
    world::{Bench, SENTINEL, Setup, World, create_all, remove_all, until},
};

const NAMESPACE: &str = "bench-alternatives";
/// The name of the objects of this scenario.
const NAME: &str = "bench-alternative";
/// The number of concurrent clients in the measurement of speed.
const CLIENTS: usize = 16;
/// A name that the policy refuses. The refusal shows that the policy is in force.
const REFUSED: &str = "refused-by-the-policy";

/// A way to limit a binding to one holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Switchboard,
    Lookup,
    Leases,
    Policy,
    /// No limit.
    Bare,
}

impl Way {
    const ALL: [Self; 5] = [Self::Switchboard, Self::Lookup, Self::Leases, Self::Policy, Self::Bare];

    fn name(self) -> &'static str {
        match self {
            Self::Switchboard => "switchboard",
            Self::Lookup => "a webhook that looks, and claims nothing",
            Self::Leases => "a Lease for each binding, by agreement of all clients",
            Self::Policy => "a ValidatingAdmissionPolicy, which sees no other object",
            Self::Bare => "nothing",
        }
    }
}

/// Runs the measurement.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let (count, races) = (bench.options.pick(1500, 32), bench.options.pick(5, 1));
    let mut world = World::start(bench, &Setup::default())?;
    world.namespace(NAMESPACE)?;
    let all = bench.options.pairs();
    let mut speeds = Vec::new();
    let mut too_many = Vec::new();
    for round in 1..=all {
        let mut measured = Vec::new();
        for way in Way::ALL {
            bench.progress.step(&format!("round {round} of {all}, {}", way.name()));
            if way == Way::Switchboard {
                world.in_force(false)?;
            } else {
                world.bare()?;
            }
            measured.push(bench.runtime.block_on(measure(&world, way, count, races))?);
            world.empty(NAMESPACE)?;
        }
        speeds.push(measured.iter().map(|(speed, _)| *speed).collect::<Vec<_>>());
        too_many.push(measured.iter().map(|(_, too_many)| *too_many).collect::<Vec<_>>());
    }
    let mut rows = Vec::new();
    for (index, way) in Way::ALL.into_iter().enumerate() {
        let duplicates: Vec<f64> = too_many.iter().map(|too_many| too_many[index]).collect();
        if way == Way::Switchboard && duplicates.iter().any(|duplicates| *duplicates > 0.0) {
            return Err(Error::Unexpected("switchboard gave two conversations the same binding".to_owned()));
        }
        if way != Way::Bare {
            let pairs: Vec<_> = speeds.iter().map(|speeds| (speeds[index], speeds[Way::ALL.len() - 1])).collect();
            rows.push(Row::pairs(9, format!("creates, {CLIENTS} clients: {}", way.name()), Unit::PerSecond, &pairs));
        }
        let name = format!("  too many in a race of {RACERS}: {}", way.name());
        rows.push(Row::figures(9, name, Unit::Count, &duplicates));
    }
    Ok(rows)
}

/// Returns creates per second, and the mean number of duplicate conversations in a race.
async fn measure(world: &World<'_>, way: Way, count: usize, races: usize) -> Result<(f64, f64)> {
    let administrator = world.administrator();
    // The webhook answers while this value lives.
    let _lookup = match way {
        Way::Lookup => Some(put_lookup_in_force(&administrator).await?),
        _ => None,
    };
    if way == Way::Policy {
        put_policy_in_force(&administrator).await?;
    }
    let batch = Batch::new(NAMESPACE);
    let work = move |client: Client, number| {
        let batch = batch.clone();
        async move { Ok(create_by(way, client, batch.conversation(number)?).await?) }
    };
    let speed = drive(&world.clients(CLIENTS).await?, count, work).await?.rate();
    let clients = world.clients(RACERS).await?;
    let mut too_many = 0;
    for _ in 0..races {
        let outcome = race(&clients, NAMESPACE, move |client, racer| create_by(way, client, racer)).await?;
        too_many += outcome.stored.saturating_sub(1);
    }
    match way {
        Way::Lookup => drop(remove_all::<ValidatingWebhookConfiguration>(&administrator, NAME).await?),
        Way::Policy => {
            remove_all::<ValidatingAdmissionPolicyBinding>(&administrator, NAME).await?;
            remove_all::<ValidatingAdmissionPolicy>(&administrator, NAME).await?;
        }
        Way::Leases => world.etcd()?.clear(&format!("/registry/leases/{NAMESPACE}/")).await?,
        Way::Switchboard | Way::Bare => {}
    }
    Ok((speed, as_f64(too_many) / as_f64(races)))
}

/// Creates a conversation as a client of this alternative does.
async fn create_by(way: Way, client: Client, conversation: Conversation) -> kube::Result<()> {
    if way == Way::Leases
        && let Ok(binding) = binding(&conversation)
    {
        let mut lease = Lease::default();
        lease.metadata.name = Some(binding.name().to_string());
        Api::namespaced(client.clone(), NAMESPACE).create(&PostParams::default(), &lease).await?;
    }
    create(client, NAMESPACE, conversation).await
}

async fn put_lookup_in_force(client: &Client) -> Result<Lookup> {
    let authority = Authority::new("lookup")?;
    let lookup = Lookup::start(client.clone(), &authority).await?;
    let configuration: ValidatingWebhookConfiguration = serde_json::from_value(json!({
        "metadata": {"name": NAME},
        "webhooks": [{
            "name": "lookup.bench.switchboard.dev",
            "rules": [rule()],
            "clientConfig": {"url": lookup.url(), "caBundle": BASE64.encode(authority.certificate().as_bytes())},
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }],
    }))?;
    create_all(client, &[configuration]).await?;
    until_refused(client, SENTINEL, &sentinel("rival")?).await?;
    Ok(lookup)
}

/// A CEL expression of the policy can only use the object of the request.
async fn put_policy_in_force(client: &Client) -> Result<()> {
    let expression =
        format!("object.metadata.name != '{REFUSED}' && object.spec.contact.address != object.spec.proxy.address");
    let policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
        "metadata": {"name": NAME},
        "spec": {
            "matchConstraints": {"resourceRules": [rule()]},
            "validations": [{"expression": expression, "reason": "Forbidden"}],
        },
    }))?;
    create_all(client, &[policy]).await?;
    let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(
        json!({"metadata": {"name": NAME}, "spec": {"policyName": NAME, "validationActions": ["Deny"]}}),
    )?;
    create_all(client, &[binding]).await?;
    let mut refused = Batch::new(NAMESPACE).conversation(0)?;
    refused.metadata.name = Some(REFUSED.to_owned());
    until_refused(client, NAMESPACE, &refused).await
}

fn rule() -> Value {
    json!({
        "apiGroups": ["switchboard.dev"],
        "apiVersions": ["v1alpha1"],
        "operations": ["CREATE"],
        "resources": ["conversations"],
    })
}

async fn until_refused(client: &Client, namespace: &str, conversation: &Conversation) -> Result<()> {
    let conversations = Api::namespaced(client.clone(), namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    until("a refusal", async || {
        matches!(conversations.create(&dry_run, conversation).await, Err(kube::Error::Api(status)) if status.code == 403)
    })
    .await
}
