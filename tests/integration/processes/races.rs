//! Many creates race for one binding, on two API servers and two replicas: one is stored, the refusals of the others name the holder,
//! and no claim is left behind. All addresses are declared and granted, and declarations are required. Tier: processes. `make soak ROUNDS=10000` runs the same for longer.

use crate::common;
use crate::common::oracle::{Binding, HoldInterval, Oracle};
use crate::common::recorder::{Clock, Recorder};
use control_plane::{ControlPlane, Installation};
use futures::future::join_all;
use futures::{StreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Api, Client, Config};
use serde_json::json;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use switchboard::api::{AddressBinding, Conversation, ConversationReference as Place, ProxyAddress};
use tokio::time::{Instant, sleep, timeout};

/// The number of creates that race for one binding.
const CREATES: usize = 50;
/// The time within which each request must be answered.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// The deadline of every wait. It is far longer than any wait takes, so that no test fails on a slow machine.
const TIMEOUT: Duration = Duration::from_mins(2);
/// The pause between two checks of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

const NAMESPACES: [&str; 2] = ["sales", "support"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_fifty_racing_creates_wins_and_refusals_name_it() {
    // The grace period can be short because the API servers give up a create after 10 s.
    let control_plane = ControlPlane::builder().api_servers(2).api_server_flag("--request-timeout=10s");
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard"))
        .replicas(2)
        .flag("--grace-period=15s")
        .flag("--unsafe-grace-period")
        .flag("--require-proxy-addresses")
        .env("SWITCHBOARD_LOG", "info,switchboard::webhook=debug");
    let mut races = Races::start(control_plane, &installation).await;
    races.run(200).await;
    races.wait_until_at_rest().await;
    let releases = races.measure_releases(10).await;
    println!("{}\n{releases}", races.tally);
    for replica in races.installation.replicas() {
        let log = std::fs::read_to_string(replica.log()).unwrap();
        assert!(log.contains("decided a create"), "{} decided no create", replica.log().display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for long: make soak"]
async fn soak() {
    let rounds = std::env::var("SWITCHBOARD_SOAK_ROUNDS").map_or(10_000, |rounds| rounds.parse().unwrap());
    let installation =
        Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2).flag("--require-proxy-addresses");
    let mut races = Races::start(ControlPlane::builder().api_servers(2), &installation).await;
    while races.tally.rounds < rounds {
        races.run((rounds - races.tally.rounds).min(100)).await;
        eprintln!("{}", races.tally);
    }
    races.wait_until_at_rest().await;
    let releases = races.measure_releases(200).await;
    println!("{}\n{releases}", races.tally);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_or_contactless_holder_gives_way_without_a_leader() {
    // The Lease of the killed leader lasts ten minutes, during which no replica leads.
    let installation =
        Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2).flag("--lease-duration=10m");
    let mut races = Races::start(ControlPlane::builder().api_servers(2), &installation).await;
    let leases = Api::<Lease>::namespaced(races.clients[0].clone(), control_plane::installation::NAMESPACE);
    let lease = leases.get("switchboard").await.unwrap();
    let leader = lease.spec.and_then(|spec| spec.holder_identity).unwrap();
    let leader = races.installation.index_of(&leader).expect("the identity of a replica");
    races.installation.balancer().remove(races.installation.replica(leader).webhook_address());
    races.installation.replica(leader).kill();

    let pair = Pair::new("no-leader");
    races.wait_for_webhook(&pair).await;
    let ways = [How::Close, How::RemoveContact];
    let mut holder = races.create_at_once(&pair, "no-leader-0", 0).await;
    for number in 1..=20 {
        races.release(&holder, ways[number % 2]).await;
        holder = races.create_at_once(&pair, &format!("no-leader-{number}"), number % 4 / 2).await;
    }
    races.recorder.check(&mut races.oracle).await;
    assert_eq!(races.oracle.hold_intervals(&pair.binding()).len(), 21, "{}", races.oracle.trail(&pair.binding()));
    let renewed = leases.get("switchboard").await.unwrap().spec.and_then(|spec| spec.holder_identity).unwrap();
    assert_eq!(races.installation.index_of(&renewed), Some(leader), "another replica leads: {renewed}");
}

/// The binding of a round, which no other round uses.
struct Pair {
    contact: String,
}

impl Pair {
    const PROXY: &str = "desk";

    fn new(contact: &str) -> Self {
        Self { contact: contact.to_owned() }
    }

    fn binding(&self) -> Binding {
        Binding::new("Chat", &self.contact, Self::PROXY)
    }

    /// The name of the claim.
    fn claim(&self) -> String {
        let channel = switchboard::api::Channel::Chat;
        let binding = switchboard::core::binding::Binding::parse(channel, &self.contact, Self::PROXY);
        binding.unwrap().name().to_string()
    }

    fn conversation(&self, ask: &Ask) -> Conversation {
        let metadata = match &ask.name {
            Name::Fixed(name) => json!({"name": name}),
            Name::Generated(prefix) => json!({"generateName": prefix}),
        };
        let spec = json!({
            "channel": "Chat",
            "contact": {"address": self.contact},
            "proxy": {"address": Self::PROXY},
            "participants": [{"identity": "agent-7"}],
            "onConflict": if ask.waits { "Wait" } else { "Refuse" },
        });
        let object = json!({
            "apiVersion": "switchboard.dev/v1alpha1", "kind": "Conversation", "metadata": metadata, "spec": spec,
        });
        serde_json::from_value(object).unwrap()
    }
}

#[derive(Clone, Debug)]
enum Name {
    Fixed(String),
    Generated(String),
}

/// The kind of request that creates a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Create,
    /// A server-side apply, which updates the conversation if the name exists.
    Apply,
}

/// One client's request.
#[derive(Clone, Debug)]
struct Ask {
    verb: Verb,
    namespace: &'static str,
    name: Name,
    is_dry_run: bool,
    /// Whether other requests use the same name.
    is_shared_name: bool,
    /// Whether it waits for a binding that is not free.
    waits: bool,
    api_server: usize,
}

/// The final answer to a client.
#[derive(Clone, Debug)]
enum Outcome {
    /// The conversation is stored or updated, or would be in the case of a dry run.
    Stored { place: Place, uid: String },
    /// 48031. The named holder must have held the binding at one of the revisions during the request.
    Refused { holder: Place, when: RangeInclusive<u64> },
    /// 409: the name exists. Also a 422 for an apply that would be an update which the schema does not allow.
    Exists,
}

/// How a holder releases its binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Close,
    RemoveContact,
    Delete,
}

impl Ask {
    /// A create with a unique name.
    fn plain(name: &str, api_server: usize) -> Self {
        Self {
            verb: Verb::Create,
            namespace: NAMESPACES[0],
            name: Name::Fixed(name.to_owned()),
            is_dry_run: false,
            is_shared_name: false,
            waits: false,
            api_server,
        }
    }

    /// The requests of one round.
    fn all(round: usize, kind: &Kind) -> Vec<Self> {
        let ask = |index: usize| {
            let namespace = NAMESPACES[usize::from(index % 5 == 4)];
            let own = Self { namespace, ..Self::plain(&format!("r{round}-{index}"), index % 2) };
            let shared = Self { is_shared_name: true, ..Self::plain(&format!("r{round}-same"), index % 2) };
            let applied = Self { verb: Verb::Apply, ..shared.clone() };
            match (kind.names, index) {
                (Names::One, index) if index % 3 == 0 && kind.releases.is_empty() => applied,
                (Names::One, _) | (Names::Some, 0..8) => shared,
                (Names::Some, 8..14) => Self { name: Name::Fixed(format!("r{round}-applied")), ..applied },
                (_, 14..22) => Self { name: Name::Generated(format!("r{round}-")), ..own },
                (_, 22..25) => {
                    Self { name: Name::Fixed(format!("r{round}-{DRY_RUN}{index}")), is_dry_run: true, ..own }
                }
                (_, 25) => Self { is_dry_run: true, ..shared },
                (_, 26) => Self { is_dry_run: true, ..applied },
                (_, 27) => Self { is_dry_run: true, name: Name::Generated(format!("r{round}-{DRY_RUN}")), ..own },
                (_, 28..34) => Self { waits: kind.waits, ..own },
                _ => own,
            }
        };
        // Each round starts with different requests.
        (0..CREATES).map(|index| ask((index * 7 + round) % CREATES)).collect()
    }
}

/// The names of dry runs contain this.
const DRY_RUN: &str = "try-";

/// The course of a round.
struct Kind {
    names: Names,
    /// How the holders release the binding, one after the other, while creates continue.
    releases: &'static [How],
    /// The number of concurrent creates.
    concurrency: usize,
    /// Whether some creates wait for the binding.
    waits: bool,
    /// Whether the holder is closed at the end, and a create of a new name takes the binding.
    has_successor: bool,
}

/// How the creates of a round choose their names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    /// Unique names, except for some dry runs.
    Own,
    /// Mostly unique names; some creates and applies share one.
    Some,
    /// One name for all.
    One,
}

/// The number of kinds of rounds.
const KINDS: usize = 10;

impl Kind {
    fn of(round: usize) -> Self {
        use How::{Close, Delete, RemoveContact};
        let (names, releases): (_, &[How]) = match round % KINDS {
            1 => (Names::One, &[]),
            2 => (Names::Own, &[Close, Close, Close]),
            4 => (Names::Own, &[RemoveContact, RemoveContact, RemoveContact]),
            6 => (Names::Own, &[Delete, Delete, Delete]),
            7 => (Names::One, &[Delete, Delete]),
            8 => (Names::Own, &[Close, Delete, RemoveContact]),
            _ => (Names::Some, &[]),
        };
        let waits = matches!(round % KINDS, 3 | 4 | 6 | 8 | 9);
        Self {
            names,
            releases,
            // In rounds with releases, lower concurrency makes the creates last longer.
            concurrency: if releases.is_empty() { CREATES } else { CREATES / 4 },
            waits,
            has_successor: !waits && names != Names::Own,
        }
    }

    /// The create that provides the next holder if the creates of the round end too early.
    fn heir(&self, round: usize, number: usize) -> Ask {
        let name = if self.names == Names::One { format!("r{round}-same") } else { format!("r{round}-heir-{number}") };
        Ask { is_shared_name: self.names == Names::One, ..Ask::plain(&name, number % 2) }
    }
}

/// Counters for the report.
#[derive(Default)]
struct Tally {
    rounds: usize,
    creates: usize,
    stored: usize,
    refusals: usize,
    exists: usize,
    repeated: AtomicUsize,
    releases: usize,
    waiting: usize,
    stuck: usize,
    seconds: f64,
    slowest: Duration,
    /// The longest time from the close of a holder until the create of a successor was admitted.
    longest_wait: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rounds,
            creates,
            stored,
            refusals,
            exists,
            repeated,
            releases,
            waiting,
            stuck,
            seconds,
            slowest,
            longest_wait,
        } = self;
        let repeated = repeated.load(Ordering::Relaxed);
        let duplicates = stored - releases - rounds;
        write!(
            f,
            "{rounds} rounds, {creates} creates, {stored} stored, {releases} released, {refusals} refusals (48031), {exists} name \
             exists (409), {repeated} repeated (503), {waiting} stored that wait, {duplicates} duplicates, {stuck} stuck claims, slowest answer {slowest:.1?}, longest wait of a \
             create after a close {longest_wait:.1?}, {seconds:.0} s"
        )
    }
}

struct Races {
    clients: [Client; 2],
    recorder: Recorder,
    clock: Clock,
    oracle: Oracle,
    tally: Tally,
    /// The conversations that the last rounds have stored.
    stored: VecDeque<Vec<Holder>>,
    // Fields are dropped in order: the replicas end before the control plane.
    installation: Installation,
    _control_plane: ControlPlane,
}

impl Races {
    async fn start(control_plane: control_plane::Builder, installation: &control_plane::InstallationBuilder) -> Self {
        let control_plane = control_plane.start().unwrap_or_else(|error| panic!("{error}"));
        let recorder = Recorder::start(&control_plane);
        let clock = recorder.clock();
        let installation = installation.install(&control_plane).unwrap_or_else(|error| panic!("{error}"));
        let clients = [client(&control_plane, 0).await, client(&control_plane, 1).await];
        for namespace in NAMESPACES {
            common::cluster::create_namespace(&clients[0], namespace).await;
        }
        let grant = json!({
            "apiVersion": "switchboard.dev/v1alpha1", "kind": "ProxyAddress", "metadata": {"name": Pair::PROXY},
            "spec": {
                "channel": "Chat", "address": Pair::PROXY,
                "namespaces": {"selector": {"matchExpressions": [
                    {"key": "kubernetes.io/metadata.name", "operator": "In", "values": NAMESPACES},
                ]}},
            },
        });
        let grant: ProxyAddress = serde_json::from_value(grant).unwrap();
        Api::all(clients[0].clone()).create(&PostParams::default(), &grant).await.unwrap();
        let oracle = Oracle::default().dry_runs(|place| place.name.contains(DRY_RUN));
        let (tally, stored) = (Tally::default(), VecDeque::new());
        Self { clients, recorder, clock, oracle, tally, stored, installation, _control_plane: control_plane }
    }

    /// Runs `rounds` more rounds.
    async fn run(&mut self, rounds: usize) {
        let began = Instant::now();
        let first = self.tally.rounds;
        for round in first..first + rounds {
            // Meanwhile, the conversations of an earlier round of this kind are deleted.
            let outdated = if self.stored.len() < KINDS { None } else { self.stored.pop_front() };
            let ((outcomes, longest_wait), ()) =
                tokio::join!(self.round(round), self.delete_all(outdated.unwrap_or_default()));
            let stored = self.check(round, outcomes, longest_wait).await;
            self.stored.push_back(stored);
        }
        self.tally.seconds += began.elapsed().as_secs_f64();
    }

    /// Lets the creates of one round race, and returns their outcomes.
    async fn round(&self, round: usize) -> (Vec<(Ask, Outcome, Duration)>, Option<Duration>) {
        let (pair, kind) = (Pair::new(&format!("contact-{round}")), Kind::of(round));
        let is_over = AtomicBool::new(false);
        let creates = async {
            let asks = stream::iter(Ask::all(round, &kind)).map(|ask| self.ask(&pair, ask));
            let outcomes = asks.buffer_unordered(kind.concurrency).collect().await;
            is_over.store(true, Ordering::Relaxed);
            outcomes
        };
        let churn = async {
            for (number, how) in kind.releases.iter().enumerate() {
                let holder = self.holder(&pair, &is_over, &kind.heir(round, number)).await;
                self.release(&holder, *how).await;
            }
            self.holder(&pair, &is_over, &kind.heir(round, kind.releases.len())).await;
        };
        let outcomes = tokio::join!(creates, churn).0;
        if !kind.has_successor {
            return (outcomes, None);
        }
        let holder = self.holder(&pair, &is_over, &kind.heir(round, kind.releases.len())).await;
        self.release(&holder, How::Close).await;
        let began = Instant::now();
        let successor = self.ask(&pair, Ask::plain(&format!("r{round}-successor"), round % 2)).await.1;
        assert!(matches!(successor, Outcome::Stored { .. }), "round {round}: the successor got {successor:?}");
        (outcomes, Some(began.elapsed()))
    }

    /// Checks the outcomes of a round, and returns the conversations that it has stored.
    async fn check(
        &mut self,
        round: usize,
        outcomes: Vec<(Ask, Outcome, Duration)>,
        longest_wait: Option<Duration>,
    ) -> Vec<Holder> {
        let binding = Pair::new(&format!("contact-{round}")).binding();
        self.recorder.check(&mut self.oracle).await;
        let hold_intervals = self.oracle.hold_intervals(&binding).to_vec();
        let trail = || self.oracle.trail(&binding);
        let expected = Kind::of(round).releases.len() + 1 + usize::from(longest_wait.is_some());
        assert_eq!(
            hold_intervals.len(),
            expected,
            "round {round}: one conversation more is stored than was released{}",
            trail()
        );
        let known: BTreeSet<_> = hold_intervals.iter().map(|interval| interval.uid.as_str()).collect();
        let (mut dry_runs, mut waiting) = (Vec::new(), Vec::new());
        for (ask, outcome, took) in &outcomes {
            self.tally.creates += 1;
            self.tally.slowest = self.tally.slowest.max(*took);
            match outcome {
                Outcome::Stored { uid, .. } if ask.is_dry_run => dry_runs.push(uid.clone()),
                Outcome::Stored { place, uid } if ask.waits && !known.contains(uid.as_str()) => {
                    waiting.push(Holder { place: place.clone(), uid: uid.clone() });
                }
                Outcome::Stored { place, uid } => {
                    assert!(known.contains(uid.as_str()), "{place} {uid} is not stored{}", trail());
                }
                Outcome::Refused { holder, when } => {
                    self.tally.refusals += 1;
                    let has_held = self.oracle.has_held(&binding, holder, when);
                    assert!(has_held, "I4: {ask:?} was refused for {holder} at {when:?}{}", trail());
                }
                Outcome::Exists => self.tally.exists += 1,
            }
        }
        for uid in dry_runs {
            // A dry run of an apply shows the UID of the conversation that it would update.
            if !known.contains(uid.as_str()) {
                self.oracle.was_dry_run(&uid).unwrap_or_else(|violation| panic!("{violation}"));
            }
        }
        self.tally.rounds += 1;
        self.tally.waiting += waiting.len();
        self.tally.longest_wait = self.tally.longest_wait.max(longest_wait.unwrap_or_default());
        self.tally.stored += hold_intervals.len();
        self.tally.releases += expected - 1;
        self.oracle.forget(&binding);
        let holders = hold_intervals.into_iter().map(|HoldInterval { place, uid, .. }| Holder { place, uid });
        holders.chain(waiting).collect()
    }

    /// Waits until everything is at rest, deletes the conversations of the last rounds, and waits again. Counts the claims without a
    /// holder.
    async fn wait_until_at_rest(&mut self) {
        self.recorder.wait_until_at_rest(&mut self.oracle, TIMEOUT).await;
        let stored = std::mem::take(&mut self.stored);
        self.delete_all(stored.into_iter().flatten().collect()).await;
        self.recorder.wait_until_at_rest(&mut self.oracle, TIMEOUT).await;
        self.tally.stuck = self.oracle.stuck().len();
    }

    /// Repeats the request until the answer is not a 503.
    async fn ask(&self, pair: &Pair, ask: Ask) -> (Ask, Outcome, Duration) {
        let (deadline, mut slowest) = (Instant::now() + TIMEOUT, Duration::ZERO);
        loop {
            let (since, began) = (self.recorder.revision(), Instant::now());
            let answer = timeout(ANSWERED_WITHIN, self.try_once(pair, &ask)).await;
            let answer = answer.unwrap_or_else(|_| panic!("{ask:?} was not answered within {ANSWERED_WITHIN:?}"));
            slowest = slowest.max(began.elapsed());
            let status = match answer {
                Ok(conversation) => {
                    let Holder { place, uid } = Holder::of(&conversation);
                    return (ask, Outcome::Stored { place, uid }, slowest);
                }
                Err(status) => status,
            };
            let outcome = match status.code {
                403 => Outcome::Refused { holder: holder_in(&status), when: since..=self.clock.now().await },
                409 if ask.is_shared_name && ask.verb == Verb::Create => Outcome::Exists,
                // The apply became an update of a conversation that is closed or has lost its contact.
                422 if ask.verb == Verb::Apply => Outcome::Exists,
                503 => {
                    self.tally.repeated.fetch_add(1, Ordering::Relaxed);
                    assert!(Instant::now() < deadline, "{ask:?} was not decided within {TIMEOUT:?}: {status:?}");
                    sleep(retry_delay(&status)).await;
                    continue;
                }
                _ => panic!("{ask:?} was answered with {status:?}"),
            };
            return (ask, outcome, slowest);
        }
    }

    async fn try_once(&self, pair: &Pair, ask: &Ask) -> Result<Conversation, Box<Status>> {
        let conversations = Api::namespaced(self.clients[ask.api_server].clone(), ask.namespace);
        let conversation = pair.conversation(ask);
        let answer = if let (Verb::Apply, Name::Fixed(name)) = (ask.verb, &ask.name) {
            let manager = format!("client-of-{}", ask.api_server);
            let parameters = PatchParams { dry_run: ask.is_dry_run, ..PatchParams::apply(&manager).force() };
            conversations.patch(name, &parameters, &Patch::Apply(&conversation)).await
        } else {
            let parameters = PostParams { dry_run: ask.is_dry_run, ..PostParams::default() };
            conversations.create(&parameters, &conversation).await
        };
        refused(answer)
    }

    /// Creates a conversation, which must be admitted at the first attempt.
    async fn create_at_once(&self, pair: &Pair, name: &str, api_server: usize) -> Holder {
        let ask = Ask::plain(name, api_server);
        let conversation = self.try_once(pair, &ask).await;
        Holder::of(&conversation.unwrap_or_else(|status| panic!("{ask:?} was not admitted at once: {status:?}")))
    }

    /// Waits until a conversation holds the binding. If none does after the creates of the round, creates one.
    async fn holder(&self, pair: &Pair, is_over: &AtomicBool, heir: &Ask) -> Holder {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let was_over = is_over.load(Ordering::Relaxed);
            if let Some(holder) = self.find_holder(pair).await {
                return holder;
            }
            if was_over && let (_, Outcome::Stored { place, uid }, _) = self.ask(pair, heir.clone()).await {
                return Holder { place, uid };
            }
            assert!(Instant::now() < deadline, "no conversation holds {} after {TIMEOUT:?}", pair.binding());
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn find_holder(&self, pair: &Pair) -> Option<Holder> {
        let claim = Api::<AddressBinding>::all(self.clients[0].clone()).get_opt(&pair.claim()).await.unwrap()?;
        let conversations = self.conversations(&claim.spec.conversation_ref.namespace);
        let conversation = conversations.get_opt(&claim.spec.conversation_ref.name).await.unwrap()?;
        let is_holding = conversation.spec.contact.is_some() && conversation.spec.state.is_none();
        is_holding.then(|| Holder::of(&conversation))
    }

    /// Makes the holder release its binding. The holder must exist.
    async fn release(&self, holder: &Holder, how: How) {
        let Holder { place, uid } = holder;
        let conversations = self.conversations(&place.namespace);
        let patch = |spec| Patch::Merge(json!({"metadata": {"uid": uid}, "spec": spec}));
        let parameters = PatchParams::default();
        let released = match how {
            How::Close => {
                conversations.patch(&place.name, &parameters, &patch(json!({"state": "Closed"}))).await.map(drop)
            }
            How::RemoveContact => {
                conversations.patch(&place.name, &parameters, &patch(json!({"contact": null}))).await.map(drop)
            }
            How::Delete => conversations.delete(&place.name, &of_uid(uid)).await.map(drop),
        };
        released.unwrap_or_else(|error| panic!("{how:?} {place}: {error}"));
    }

    /// Deletes the conversations that still exist.
    async fn delete_all(&self, stored: Vec<Holder>) {
        join_all(stored.iter().map(async |Holder { place, uid }| {
            match refused(self.conversations(&place.namespace).delete(&place.name, &of_uid(uid)).await) {
                Ok(_) => {}
                // It was deleted, and another conversation may have its name.
                Err(status) if status.code == 404 || status.code == 409 => {}
                Err(status) => panic!("deleting {place}: {status:?}"),
            }
        }))
        .await;
    }

    fn conversations(&self, namespace: &str) -> Api<Conversation> {
        Api::namespaced(self.clients[0].clone(), namespace)
    }

    /// Measures the time from the release of a binding to the next admitted create, for each way to release it.
    async fn measure_releases(&mut self, count: usize) -> String {
        let mut lines = Vec::new();
        for how in [How::Close, How::RemoveContact, How::Delete] {
            let pair = Pair::new(&format!("measured-{how:?}"));
            let (mut took, mut all) = (Vec::new(), Vec::new());
            let mut holder = self.create_at_once(&pair, &format!("measured-{how:?}-0").to_lowercase(), 0).await;
            for number in 1..=count {
                let name = format!("measured-{how:?}-{number}").to_lowercase();
                self.release(&holder, how).await;
                let began = Instant::now();
                let next = if how == How::Delete {
                    match self.ask(&pair, Ask::plain(&name, number % 2)).await {
                        (_, Outcome::Stored { place, uid }, _) => Holder { place, uid },
                        (_, outcome, _) => panic!("{name} got {outcome:?} after a deletion"),
                    }
                } else {
                    self.create_at_once(&pair, &name, number % 2).await
                };
                took.push(began.elapsed());
                all.push(std::mem::replace(&mut holder, next));
            }
            all.push(holder);
            self.delete_all(all).await;
            took.sort();
            let (half, most) = (took[count / 2], took[(count * 99).div_ceil(100) - 1]);
            lines.push(format!(
                "{how:?}: the next create is admitted after p50 {half:.1?}, p99 {most:.1?} ({count} times)"
            ));
        }
        self.wait_until_at_rest().await;
        lines.join("\n")
    }

    /// Waits until the API servers reach the webhook again after a replica was killed.
    async fn wait_for_webhook(&self, pair: &Pair) {
        let deadline = Instant::now() + TIMEOUT;
        for api_server in 0..self.clients.len() {
            let ask = Ask { is_dry_run: true, ..Ask::plain(&format!("{DRY_RUN}once"), api_server) };
            while let Err(status) = self.try_once(pair, &ask).await {
                assert!(Instant::now() < deadline, "the webhook cannot be reached after {TIMEOUT:?}: {status:?}");
                sleep(POLL_INTERVAL).await;
            }
        }
    }
}

/// A conversation that was stored.
#[derive(Clone, Debug)]
struct Holder {
    place: Place,
    uid: String,
}

impl Holder {
    fn of(conversation: &Conversation) -> Self {
        let metadata = conversation.metadata.clone();
        let place = Place { namespace: metadata.namespace.unwrap(), name: metadata.name.unwrap() };
        Self { place, uid: metadata.uid.unwrap() }
    }
}

fn of_uid(uid: &str) -> DeleteParams {
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
}

/// A client that does not retry.
async fn client(control_plane: &ControlPlane, api_server: usize) -> Client {
    let kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig()).unwrap();
    let context = Some(format!("api-{}", api_server + 1));
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

fn refused<T>(answer: kube::Result<T>) -> Result<T, Box<Status>> {
    match answer {
        Ok(value) => Ok(value),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("the API server did not answer: {error}"),
    }
}

/// The holder that a 48031 names. Its details contain the holder twice, for programs, and its message once, for people.
fn holder_in(status: &Status) -> Place {
    let details = status.details.as_ref().unwrap_or_else(|| panic!("no details: {status:?}"));
    let [cause, holder, ..] = &details.causes[..] else { panic!("no holder: {status:?}") };
    let named = (details.kind.as_str(), cause.reason.as_str(), cause.field.as_str(), status.reason.as_str());
    assert_eq!(named, ("Conversation", "48031", "spec.contact.address", "Forbidden"), "{status:?}");
    assert_eq!(holder.reason, "Holder", "{status:?}");
    let (namespace, name) = holder.message.split_once('/').unwrap_or_else(|| panic!("no holder: {status:?}"));
    let place = Place { namespace: namespace.to_owned(), name: name.to_owned() };
    assert_eq!(details.name, name, "{status:?}");
    assert!(status.message.contains("48031: ") && status.message.contains(&place.to_string()), "{status:?}");
    place
}

/// The retry delay of a 503, which must be one of switchboard.
fn retry_delay(status: &Status) -> Duration {
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    assert!(seconds > 0 && status.message.contains("cannot determine yet"), "{status:?}");
    Duration::from_secs(seconds.into())
}
