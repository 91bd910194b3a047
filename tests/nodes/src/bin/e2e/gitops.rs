//! Conversations in Git: each change that a team makes by a commit, applied by Flux itself.

use std::time::{Duration, Instant};

use nodes::{Error, Result, wait};
use serde_json::{Value, json};

use crate::{
    flux::{self, Flux, GIT_SERVER, condition},
    world::{TIMEOUT, World, expect, list},
};

/// The namespace of the conversations, and the name of their Kustomization.
const SHOP: &str = "shop";
/// Another namespace of conversations.
const BRANCH: &str = "branch";

/// A change, and its test. It returns the time until the Kustomization was Ready.
type Step = (&'static str, fn(&Flux) -> Result<Duration>);

const STEPS: [Step; 18] = [
    ("open a conversation", open),
    ("close one and open another, closed first", |flux| close_and_open(flux, "close-a", "close-b")),
    ("close one and open another, opened first", |flux| close_and_open(flux, "close-d", "close-c")),
    ("rename", rename),
    ("move to another namespace", move_to_another_namespace),
    ("refuse in place of wait, then wait", refuse_then_wait),
    ("one conflict among many, from the end of the conflict", one_conflict_among_many),
    ("prune two that are in conflict", prune_two_in_conflict),
    ("open again what kubectl closed", close_by_kubectl),
    ("edit participants of open and closed conversations", edit_participants),
    ("leave a conversation to people (IfNotPresent)", leave_to_people),
    ("close and open during an outage, from its end", outage),
    ("close in one Kustomization and open in a dependent one", depend_on_another),
    ("edit a closed conversation by force", force_edits_what_is_closed),
    ("correct a typo that force made a deletion", force_deletes_for_a_typo),
    ("set ttlAfterClosed", ttl_after_closed),
    ("change nothing", change_nothing),
    ("delete the Kustomizations", delete_kustomizations),
];

pub fn transitions(world: &mut World) -> Result<String> {
    let flux = Flux::install(world)?;
    for namespace in [SHOP, BRANCH] {
        flux.world.cluster.kubectl_run(&["create", "namespace", namespace])?;
    }
    let mut slowest = ("", Duration::ZERO);
    for (name, step) in STEPS {
        let took = step(&flux).map_err(|error| Error::Unexpected(format!("{name}: {error}")))?;
        println!("       {name}: {:.1} s", took.as_secs_f32());
        if took > slowest.1 {
            slowest = (name, took);
        }
    }
    for namespace in [SHOP, BRANCH] {
        flux.world.cluster.kubectl_run(&["delete", "namespace", namespace, "--timeout=3m"])?;
    }
    flux.uninstall()?;
    world.cluster.end_on_first_node(GIT_SERVER);
    let (name, took) = slowest;
    Ok(format!("{} changes; the slowest one after {:.1} s: {name}", STEPS.len(), took.as_secs_f32()))
}

/// Commits these manifests instead of the previous ones, and waits until they are applied, the others pruned, and all of them healthy.
fn apply(flux: &Flux, manifests: &[Value]) -> Result<Duration> {
    apply_in(flux, SHOP, manifests)
}

fn apply_in(flux: &Flux, kustomization: &str, manifests: &[Value]) -> Result<Duration> {
    let started = Instant::now();
    let revision = flux.commit(&[(kustomization, manifests)])?;
    flux.wait_until_ready(kustomization, &revision)?;
    Ok(started.elapsed())
}

/// A conversation without a contact and with these fields of the spec.
fn unbound(name: &str, spec: Value) -> Value {
    let mut manifest = json!({
        "apiVersion": "switchboard.dev/v1alpha1",
        "kind": "Conversation",
        "metadata": {"name": name, "namespace": SHOP},
        "spec": {"channel": "Chat", "proxy": {"address": "support"}},
    });
    if let Value::Object(fields) = spec {
        for (field, value) in fields {
            manifest["spec"][field] = value;
        }
    }
    manifest
}

/// A conversation with this contact and with these fields of the spec.
fn with_contact(name: &str, contact: &str, spec: Value) -> Value {
    let mut manifest = unbound(name, spec);
    manifest["spec"]["contact"] = json!({"address": contact});
    manifest
}

fn waiting(name: &str, contact: &str) -> Value {
    with_contact(name, contact, json!({"onConflict": "Wait"}))
}

fn closed(name: &str, contact: &str) -> Value {
    with_contact(name, contact, json!({"onConflict": "Wait", "state": "Closed"}))
}

fn participant(identity: &str) -> Value {
    json!({"participants": [{"identity": identity}]})
}

fn read(flux: &Flux, name: &str) -> Result<Value> {
    flux.world.get_in(SHOP, &["conversation", name])
}

fn expect_bound(flux: &Flux, name: &str) -> Result<()> {
    let bound = condition(&read(flux, name)?, "Bound");
    expect(bound["status"] == "True", || format!("{name} is not bound: {bound}"))
}

fn expect_closed(flux: &Flux, name: &str) -> Result<()> {
    let state = read(flux, name)?["status"]["state"].clone();
    expect(state == "Closed", || format!("{name} is {state}"))
}

fn expect_gone(flux: &Flux, name: &str) -> Result<()> {
    let found = conversations(flux, SHOP, &["--ignore-not-found", "--output=name", name])?;
    expect(found.is_empty(), || format!("{found} exists"))
}

fn expect_participant(flux: &Flux, name: &str, identity: &str) -> Result<()> {
    let participants = read(flux, name)?["spec"]["participants"].clone();
    expect(participants == participant(identity)["participants"], || format!("{name} has {participants}"))
}

/// Flux logs the warnings of the API server.
fn expect_logged(flux: &Flux, warning: &str) -> Result<()> {
    let log = flux.kubectl(&["logs", "--tail=-1", "deployment/kustomize-controller"])?;
    expect(log.contains(warning), || format!("{warning} is not in the log of the kustomize-controller"))
}

/// Returns the output of `kubectl get conversations`.
fn conversations(flux: &Flux, namespace: &str, arguments: &[&str]) -> Result<String> {
    flux.world.cluster.kubectl_run(&[&["--namespace", namespace, "get", "conversations"], arguments].concat())
}

/// Changes the spec as people do.
fn patch_by_kubectl(flux: &Flux, name: &str, spec: &Value) -> Result<()> {
    let patch = json!({"spec": spec}).to_string();
    let arguments = ["--namespace", SHOP, "patch", "conversation", name, "--type=merge", "--patch", &patch];
    flux.world.cluster.kubectl_run(&arguments).map(drop)
}

fn wait_until_closed(flux: &Flux, name: &str) -> Result<()> {
    let name = format!("conversation/{name}");
    let arguments = ["--namespace", SHOP, "wait", "--for=jsonpath={.status.state}=Closed", &name, "--timeout=3m"];
    flux.world.cluster.kubectl_run(&arguments).map(drop)
}

fn closes_by_kubectl(flux: &Flux, name: &str) -> Result<()> {
    patch_by_kubectl(flux, name, &json!({"state": "Closed"}))?;
    wait_until_closed(flux, name)
}

fn open(flux: &Flux) -> Result<Duration> {
    let started = Instant::now();
    let revision = flux.commit(&[(SHOP, &[waiting("opened", "open")])])?;
    flux.create_kustomization(SHOP, &json!({}))?;
    flux.wait_until_ready(SHOP, &revision)?;
    let took = started.elapsed();
    expect_bound(flux, "opened")?;
    Ok(took)
}

/// Flux applies in the order of the names.
fn close_and_open(flux: &Flux, before: &str, after: &str) -> Result<Duration> {
    let contact = format!("from-{before}-to-{after}");
    apply(flux, &[waiting(before, &contact)])?;
    let took = apply(flux, &[closed(before, &contact), waiting(after, &contact)])?;
    expect_closed(flux, before)?;
    expect_bound(flux, after)?;
    Ok(took)
}

fn rename(flux: &Flux) -> Result<Duration> {
    apply(flux, &[waiting("rename-before", "renamed")])?;
    let took = apply(flux, &[waiting("rename-after", "renamed")])?;
    expect_gone(flux, "rename-before")?;
    expect_bound(flux, "rename-after")?;
    Ok(took)
}

fn move_to_another_namespace(flux: &Flux) -> Result<Duration> {
    apply(flux, &[waiting("moved", "moved")])?;
    let mut moved = waiting("moved", "moved");
    moved["metadata"]["namespace"] = json!(BRANCH);
    let took = apply(flux, &[moved])?;
    expect_gone(flux, "moved")?;
    let bound = condition(&flux.world.get_in(BRANCH, &["conversation", "moved"])?, "Bound");
    expect(bound["status"] == "True", || format!("it is not bound in the other namespace: {bound}"))?;
    Ok(took)
}

/// Without `Wait`, the commit of the previous steps is refused as a whole, each time that Flux tries it.
fn refuse_then_wait(flux: &Flux) -> Result<Duration> {
    let contact = "refused";
    apply(flux, &[waiting("refuse-a", contact)])?;
    let revision =
        flux.commit(&[(SHOP, &[closed("refuse-a", contact), with_contact("refuse-b", contact, json!({}))])])?;
    let manager = format!("Flux Kustomization {}/{SHOP}", flux::NAMESPACE);
    let texts = ["refuse-b dry-run failed (Forbidden)", "48031", &manager];
    flux.wait_until_failed(SHOP, &revision, "ReconciliationFailed", &texts)?;
    flux.wait_for_failures(SHOP, 3)?;
    expect_bound(flux, "refuse-a")?;
    expect_gone(flux, "refuse-b")?;
    let took = apply(flux, &[closed("refuse-a", contact), waiting("refuse-b", contact)])?;
    expect_closed(flux, "refuse-a")?;
    expect_bound(flux, "refuse-b")?;
    Ok(took)
}

/// Somebody else holds the binding of one of three conversations. The others are bound, a later commit is applied too, and the
/// Kustomization becomes Ready without another commit.
fn one_conflict_among_many(flux: &Flux) -> Result<Duration> {
    let holder = with_contact("many-holder", "contended", json!({}));
    let file = flux.world.cluster.write("holder.json", &holder.to_string())?;
    flux.world.cluster.kubectl_run(&["create", "--filename", &file.display().to_string()])?;
    let mut manifests = vec![waiting("many-1", "many-1"), waiting("many-2", "contended"), waiting("many-3", "many-3")];
    let revision = flux.commit(&[(SHOP, &manifests)])?;
    flux.wait_until_failed(SHOP, &revision, "HealthCheckFailed", &["many-2 status: 'InProgress'"])?;
    expect_bound(flux, "many-1")?;
    expect_bound(flux, "many-3")?;
    let bound = condition(&read(flux, "many-2")?, "Bound");
    expect(bound["reason"] == "WaitingForBinding", || format!("it does not wait: {bound}"))?;
    manifests.push(waiting("many-4", "many-4"));
    let revision = flux.commit(&[(SHOP, &manifests)])?;
    wait("the conversation of the next commit", TIMEOUT, || {
        expect_bound(flux, "many-4").map_err(|error| error.to_string())
    })?;
    let started = Instant::now();
    patch_by_kubectl(flux, "many-holder", &json!({"state": "Closed"}))?;
    flux.wait_until_ready(SHOP, &revision)?;
    let took = started.elapsed();
    expect_bound(flux, "many-2")?;
    Ok(took)
}

/// Both of them are in Flux's inventory, although the commit that created them has not become Ready.
fn prune_two_in_conflict(flux: &Flux) -> Result<Duration> {
    let kept = waiting("kept", "kept");
    let pair = ["pair-a", "pair-b"].map(|name| waiting(name, "both"));
    let revision = flux.commit(&[(SHOP, &[&pair[..], std::slice::from_ref(&kept)].concat())])?;
    flux.wait_until_failed(SHOP, &revision, "HealthCheckFailed", &["status: 'InProgress'"])?;
    let took = apply(flux, &[kept])?;
    expect_gone(flux, "pair-a")?;
    expect_gone(flux, "pair-b")?;
    Ok(took)
}

/// Flux sets the state of the manifest again. What is closed stays closed, so its binding can be given to another conversation.
fn close_by_kubectl(flux: &Flux) -> Result<Duration> {
    let before = [
        with_contact("kubectl-a", "no-state", json!({})),
        with_contact("kubectl-b", "active", json!({"state": "Active"})),
    ];
    apply(flux, &before)?;
    for name in ["kubectl-a", "kubectl-b"] {
        closes_by_kubectl(flux, name)?;
    }
    let after = [with_contact("kubectl-c", "no-state", json!({})), with_contact("kubectl-d", "active", json!({}))];
    let took = apply(flux, &[before, after].concat())?;
    for (name, state) in [("kubectl-a", Value::Null), ("kubectl-b", json!("Active"))] {
        expect_closed(flux, name)?;
        let spec = read(flux, name)?["spec"].clone();
        expect(spec["state"] == state, || format!("the spec of {name} is not as in Git: {spec}"))?;
    }
    for name in ["kubectl-c", "kubectl-d"] {
        expect_bound(flux, name)?;
    }
    expect_logged(flux, "50377")?;
    Ok(took)
}

fn edit_participants(flux: &Flux) -> Result<Duration> {
    let manifests = |identity: &str| {
        let mut timed = participant(identity);
        timed["timers"] = json!({"closeAfter": "1s"});
        [
            with_contact("edit-open", "edited", participant(identity)),
            unbound("edit-timed", timed),
            with_contact("edit-closed", "edited-too", participant(identity)),
        ]
    };
    apply(flux, &manifests("agent-7"))?;
    wait_until_closed(flux, "edit-timed")?;
    closes_by_kubectl(flux, "edit-closed")?;
    let took = apply(flux, &manifests("agent-9"))?;
    for name in ["edit-open", "edit-timed", "edit-closed"] {
        expect_participant(flux, name, "agent-9")?;
    }
    expect_bound(flux, "edit-open")?;
    expect_closed(flux, "edit-timed")?;
    expect_closed(flux, "edit-closed")?;
    Ok(took)
}

/// Flux creates the conversation, leaves it alone, and prunes it.
fn leave_to_people(flux: &Flux) -> Result<Duration> {
    let mut people = with_contact("people", "people", participant("agent-7"));
    people["metadata"]["annotations"] = json!({"kustomize.toolkit.fluxcd.io/ssa": "IfNotPresent"});
    apply(flux, std::slice::from_ref(&people))?;
    patch_by_kubectl(flux, "people", &participant("agent-9"))?;
    let kept = waiting("kept", "kept");
    let took = apply(flux, &[people.clone(), kept.clone()])?;
    expect_participant(flux, "people", "agent-9")?;
    closes_by_kubectl(flux, "people")?;
    apply(flux, &[people, kept.clone()])?;
    let spec = read(flux, "people")?["spec"].clone();
    expect(spec["state"] == "Closed", || format!("Flux has changed what it should leave alone: {spec}"))?;
    apply(flux, &[kept])?;
    expect_gone(flux, "people")?;
    Ok(took)
}

/// The pods of the operator are gone while Flux applies a commit. Nobody repeats anything afterwards.
fn outage(flux: &Flux) -> Result<Duration> {
    let contact = "outage";
    let scale = |replicas: &str| flux.world.kubectl(&["scale", "deployment/switchboard", replicas]);
    apply(flux, &[waiting("outage-a", contact)])?;
    scale("--replicas=0")?;
    wait("the pods of the operator to end", TIMEOUT, || {
        let pods = flux.world.pods().map_err(|error| error.to_string())?;
        if pods.is_empty() { Ok(()) } else { Err(format!("{pods:?}")) }
    })?;
    let revision = flux.commit(&[(SHOP, &[closed("outage-a", contact), waiting("outage-b", contact)])])?;
    let failed = flux.wait_until_failed(SHOP, &revision, "ReconciliationFailed", &["failed calling webhook"]);
    let started = Instant::now();
    // The next scenario needs the pods, even if this one has failed.
    scale("--replicas=2")?;
    failed?;
    flux.wait_until_ready(SHOP, &revision)?;
    let took = started.elapsed();
    flux.world.wait_for_rollout()?;
    expect_closed(flux, "outage-a")?;
    expect_bound(flux, "outage-b")?;
    Ok(took)
}

/// This needs no `Wait`. The dependent Kustomization is applied once the other one is Ready at the same revision. Flux checks this every
/// 30 s by default.
fn depend_on_another(flux: &Flux) -> Result<Duration> {
    const CLOSING: &str = "closing";
    const OPENING: &str = "opening";
    let contact = "handed-over";
    let open = with_contact("depend-a", contact, json!({}));
    let revision = flux.commit(&[(CLOSING, &[open]), (OPENING, &[unbound("depend-other", json!({}))])])?;
    for (name, more) in [(CLOSING, json!({})), (OPENING, json!({"dependsOn": [{"name": CLOSING}]}))] {
        flux.create_kustomization(name, &more)?;
        flux.wait_until_ready(name, &revision)?;
    }
    let started = Instant::now();
    let close = with_contact("depend-a", contact, json!({"state": "Closed"}));
    let revision = flux.commit(&[(CLOSING, &[close]), (OPENING, &[with_contact("depend-b", contact, json!({}))])])?;
    for name in [CLOSING, OPENING] {
        flux.wait_until_ready(name, &revision)?;
    }
    let took = started.elapsed();
    expect_closed(flux, "depend-a")?;
    expect_bound(flux, "depend-b")?;
    flux.kubectl(&["delete", "kustomization", CLOSING, OPENING, "--timeout=3m"])?;
    Ok(took)
}

/// The name of a Kustomization with `force`, and of its directory.
const FORCED: &str = "forced";

fn uid(flux: &Flux, name: &str) -> Result<Value> {
    Ok(read(flux, name)?["metadata"]["uid"].clone())
}

/// Flux deletes and creates again what the API server refuses to change. It does not refuse an edit of a closed conversation.
fn force_edits_what_is_closed(flux: &Flux) -> Result<Duration> {
    let manifest = |identity: &str| with_contact("forced", "forced", participant(identity));
    let revision = flux.commit(&[(FORCED, &[manifest("agent-7")])])?;
    flux.create_kustomization(FORCED, &json!({"force": true}))?;
    flux.wait_until_ready(FORCED, &revision)?;
    closes_by_kubectl(flux, "forced")?;
    let before = uid(flux, "forced")?;
    let took = apply_in(flux, FORCED, &[manifest("agent-9")])?;
    expect_participant(flux, "forced", "agent-9")?;
    expect_closed(flux, "forced")?;
    let after = uid(flux, "forced")?;
    expect(before == after, || "it was created again".to_owned())?;
    Ok(took)
}

/// The documented reason never to use `force`: a typo deletes a live conversation.
fn force_deletes_for_a_typo(flux: &Flux) -> Result<Duration> {
    let manifest = |duration: &str| with_contact("typo", "typo", json!({"timers": {"closeAfter": duration}}));
    apply_in(flux, FORCED, &[manifest("23h")])?;
    let before = uid(flux, "typo")?;
    flux.commit(&[(FORCED, &[manifest("24 hours")])])?;
    wait("the deletion of the conversation", TIMEOUT, || expect_gone(flux, "typo").map_err(|error| error.to_string()))?;
    let took = apply_in(flux, FORCED, &[manifest("24h")])?;
    expect_bound(flux, "typo")?;
    let after = uid(flux, "typo")?;
    expect(before != after, || "it is still the same conversation".to_owned())?;
    Ok(took)
}

fn ttl_after_closed(flux: &Flux) -> Result<Duration> {
    let took = apply(flux, &[with_contact("ttl", "ttl", json!({"ttlAfterClosed": "720h"}))])?;
    expect_logged(flux, "switchboard-ttl")?;
    Ok(took)
}

/// A new revision with the same manifests finds no drift, and writes nothing.
fn change_nothing(flux: &Flux) -> Result<Duration> {
    let manifests = [
        waiting("same-waiting", "unchanged"),
        closed("same-closed", "unchanged"),
        unbound("same-timed", json!({"timers": {"closeAfter": "1s"}})),
        unbound("same-open", json!({"timers": {"inactiveAfter": "1h", "closeAfter": "24h"}})),
    ];
    apply(flux, &manifests)?;
    wait_until_closed(flux, "same-timed")?;
    let path = "--output=jsonpath={.items[*].metadata.resourceVersion}";
    let before = conversations(flux, SHOP, &[path])?;
    let took = apply(flux, &manifests)?;
    let after = conversations(flux, SHOP, &[path])?;
    expect(before == after, || format!("the versions were {before} and are {after}"))?;
    Ok(took)
}

/// Deleting a Kustomization prunes its conversations, and their bindings are free.
fn delete_kustomizations(flux: &Flux) -> Result<Duration> {
    let claims = || -> Result<usize> {
        let claims = flux.world.get(&["addressbindings"])?;
        Ok(list(&claims).iter().filter(|claim| claim["spec"]["proxyAddress"] == "support").count())
    };
    expect(claims()? > 0, || "there is no claim, so the step would show nothing".to_owned())?;
    let started = Instant::now();
    flux.kubectl(&["delete", "kustomizations", "--all", "--timeout=3m"])?;
    let deleted = conversations(flux, SHOP, &["--selector=kustomize.toolkit.fluxcd.io/name", "--output=name"])?;
    expect(deleted.is_empty(), || format!("{deleted} exist"))?;
    wait("all bindings to be free", TIMEOUT, || match claims() {
        Ok(0) => Ok(()),
        Ok(count) => Err(format!("{count} claims exist")),
        Err(error) => Err(error.to_string()),
    })?;
    Ok(started.elapsed())
}
