//! A random walk: contacts write, conversations are closed, routers are killed and sinks fail. An oracle of its own checks that each message
//! was delivered or answered with an error, and that what one contact sends one after the other stays in order. Tier: processes.

use crate::common::cluster::Cluster;
use crate::common::fault_cluster::{HistoryChecker, POLL_INTERVAL};
use crate::common::routing::{Inbound, builder};
use crate::common::sink::{Answer, Received};
use control_plane::Router;
use futures::future::join_all;
use hyper::StatusCode;
use kube::api::ListParams;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use switchboard::api::{Channel, State};
use switchboard::core::binding::Binding;
use tokio::time::{Instant, sleep};

/// The number of contacts.
const CONTACTS: usize = 8;

/// How long the walk takes: fifteen seconds, or as `SWITCHBOARD_WALK_SECONDS` says.
fn duration() -> Duration {
    let seconds = std::env::var("SWITCHBOARD_WALK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    Duration::from_secs(seconds)
}

/// Pseudo-random numbers. The seed is printed, though the machine decides too what happens.
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let step = |state: u64| {
            let state = state ^ (state << 13);
            let state = state ^ (state >> 7);
            state ^ (state << 17)
        };
        step(self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| Some(step(state))).unwrap()) % sides
    }
}

/// Kills routers, makes the sink fail and closes conversations until `is_over`. Returns how often each happened.
async fn disturb(inbound: &Inbound, routers: &[Router], dice: &Dice, is_over: &AtomicBool) -> [usize; 3] {
    let mut counts = [0_usize; 3];
    while !is_over.load(Ordering::SeqCst) {
        match dice.roll(6) {
            0 => {
                let router = usize::try_from(dice.roll(2)).unwrap();
                tokio::task::block_in_place(|| {
                    routers[router].kill();
                    routers[router].start().unwrap();
                });
                counts[0] += 1;
            }
            1 => {
                let status = [500, 503, 429, 404][usize::try_from(dice.roll(4)).unwrap()];
                inbound.sink.answer(move |_| Answer::Status(status));
                sleep(POLL_INTERVAL * 4).await;
                inbound.sink.answer(|_| Answer::Status(202));
                counts[1] += 1;
            }
            _ => {
                let all = inbound.ns.conversations().list(&ListParams::default()).await.unwrap();
                let open: Vec<_> = all
                    .items
                    .iter()
                    .filter(|conversation| conversation.spec.state != Some(State::Closed))
                    .filter_map(|conversation| conversation.metadata.name.clone())
                    .collect();
                if !open.is_empty() {
                    let chosen = usize::try_from(dice.roll(u64::try_from(open.len()).unwrap())).unwrap();
                    // A timer or another closer may have been first.
                    let _ = inbound.ns.change(&open[chosen], json!({"state": "Closed"})).await;
                    counts[2] += 1;
                }
            }
        }
        sleep(POLL_INTERVAL).await;
    }
    counts
}

/// What a contact has sent: the messages that were accepted, in order, and those that were not.
type Sent = (String, Vec<String>, HashSet<String>);

/// Checks that each accepted message was delivered, in the order of each contact. Returns how many were accepted, and how many not.
fn check_deliveries(received: &[Received], sent: &[Sent]) -> (usize, usize) {
    let is_accepted = |event: &&Received| (200..300).contains(&event.status);
    let mut first = HashMap::<&str, usize>::new();
    for (position, event) in received.iter().filter(is_accepted).enumerate() {
        let id = event.attribute("id").unwrap();
        if ["received", "unroutable"].contains(&event.kind()) {
            first.entry(id.strip_suffix("/unroutable").unwrap_or(id)).or_insert(position);
        }
    }
    let (mut accepted_count, mut refused_count) = (0, 0);
    for (contact, accepted, refused) in sent {
        let positions: Vec<_> = accepted
            .iter()
            .map(|id| *first.get(id.as_str()).unwrap_or_else(|| panic!("{id} was acknowledged and not delivered")))
            .collect();
        assert!(positions.is_sorted(), "the messages of {contact} are out of order: {positions:?}");
        accepted_count += accepted.len();
        refused_count += refused.len();
    }
    (accepted_count, refused_count)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_delivered_or_refused_and_stay_in_order() {
    let seed = RandomState::new().hash_one(0) | 1;
    println!("seed {seed}, {:?}", duration());
    let dice = Arc::new(Dice(AtomicU64::new(seed)));
    let cluster = Cluster::shared();
    let inbound = Arc::new(Inbound::new(json!({})).await);
    let routers: Arc<Vec<Router>> = Arc::new(
        (0..2)
            .map(|index| {
                builder(&format!("router-walk-{index}")).api_server(index).start(&cluster.control_plane).unwrap()
            })
            .collect(),
    );
    let contacts: Vec<String> =
        (0..CONTACTS).map(|number| format!("+1559{number:03}{}", &inbound.ns.contact[9..])).collect();
    let bindings =
        contacts.iter().map(|contact| Binding::parse(Channel::Sms, contact, &inbound.ns.proxy).unwrap().name());
    let mut checker = HistoryChecker::start(&cluster.control_plane, &inbound.ns.namespace, bindings.collect());
    let (end, is_over) = (Instant::now() + duration(), Arc::new(AtomicBool::new(false)));

    let senders = join_all(contacts.iter().cloned().map(|contact| {
        let (inbound, routers, dice) = (inbound.clone(), routers.clone(), dice.clone());
        tokio::spawn(async move {
            let mut accepted = Vec::new();
            let mut refused = HashSet::new();
            for number in 0.. {
                if Instant::now() >= end {
                    break;
                }
                let mut message = inbound.message(&format!("{contact}/{number}"));
                message.data["contact"] = json!(contact);
                // As a provider does: again until it is accepted, at most a few times.
                let mut is_accepted = false;
                for _ in 0..4 {
                    let router = &routers[usize::try_from(dice.roll(2)).unwrap()];
                    let answered = message.try_send(router.inbound_address()).await;
                    if answered.is_some_and(|answered| answered.status == StatusCode::OK) {
                        is_accepted = true;
                        break;
                    }
                    sleep(POLL_INTERVAL).await;
                }
                if is_accepted {
                    accepted.push(message.id);
                } else {
                    refused.insert(message.id);
                }
            }
            (contact, accepted, refused)
        })
    }));

    let disturber = {
        let (inbound, routers, dice, is_over) = (inbound.clone(), routers.clone(), dice.clone(), is_over.clone());
        tokio::spawn(async move { disturb(&inbound, &routers, &dice, &is_over).await })
    };

    let sent: Vec<_> = senders.await.into_iter().map(Result::unwrap).collect();
    is_over.store(true, Ordering::SeqCst);
    let [kills, outages, closes] = disturber.await.unwrap();

    let (accepted_count, refused_count) = check_deliveries(&inbound.sink.received(), &sent);
    let opened = inbound.conversations().await.len();
    println!(
        "{accepted_count} messages accepted, {refused_count} refused, {opened} conversations, {kills} kills, {outages} outages, {closes} closes"
    );
    assert!(accepted_count > CONTACTS && closes > 0, "nothing happened");
    assert!(opened > CONTACTS, "no conversation was opened after a close");

    // By the history of etcd, no binding ever had two open conversations.
    checker.check().await;
}
