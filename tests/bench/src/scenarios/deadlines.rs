//! Scenario 7: the delay of timers whose deadlines are spread over a minute, as a watching client observes it; and the time until many
//! conversations with the same deadline are closed and released, compared with a bare client that makes the same writes.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};
use switchboard::{
    api::{AddressBinding, Conversation, Time},
    clock::Clock,
};
use tokio::time::sleep_until;

use crate::{
    error::{Error, Result},
    load::drive,
    observe::Observer,
    report::{Row, Target, Unit, percentile},
    seed::Template,
    workload::{BareClient, Batch},
    world::{Bench, Setup, World},
};

const NAMESPACE: &str = "bench-deadlines";
/// The number of concurrent writers, as in the operator.
const WRITERS: usize = 16;

/// Runs the measurement.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let mut world = World::start(bench, &Setup::default())?;
    world.namespace(NAMESPACE)?;
    let mut rows = spread(bench, &mut world)?;
    rows.push(at_once(bench, &mut world)?);
    Ok(rows)
}

/// Measures the delay of evenly spread deadlines.
fn spread(bench: &Bench, world: &mut World) -> Result<Vec<Row>> {
    let (count, seconds) = (bench.options.pick(2000, 50), bench.options.pick(60, 3));
    // All objects must be stored and observed, and the operator at rest, before the first deadline.
    let first = bench.options.pick(20, 6);
    let runs = bench.options.pick(3, 1);
    let after = |number: usize| milliseconds(first * 1000 + number * seconds * 1000 / count);
    let mut figures: [Vec<f64>; 3] = Default::default();
    for run in 1..=runs {
        bench.progress.step(&format!("run {run} of {runs}, {count} deadlines within {seconds} s"));
        world.bare()?;
        let (template, mut observers) = bench.runtime.block_on(prepare(world, count, after))?;
        world.in_force(true)?;
        let all_closed = observers.conversations.wait_until("all closed", |seen| seen.closed.len() == count);
        let seen = bench.runtime.block_on(all_closed)?;
        world.empty(NAMESPACE)?;
        let creation = template.creation_time()?;
        let mut lateness = Vec::new();
        for number in 0..count {
            let due = instant(creation.after(after(number)))?;
            let closed = template.name(number)?;
            let closed =
                seen.closed.get(&closed).ok_or_else(|| Error::Unexpected(format!("{closed} was not closed")))?;
            lateness.push(closed.saturating_duration_since(due).as_secs_f64());
        }
        for (figures, share) in figures.iter_mut().zip([0.5, 0.99, 1.0]) {
            figures.push(percentile(&lateness, share));
        }
    }
    let row = |what: &str, figures: &[f64]| {
        Row::figures(7, format!("lateness of {count} deadlines within {seconds} s, {what}"), Unit::Seconds, figures)
    };
    let [p50, p99, max] = figures;
    Ok(vec![row("p50", &p50), row("p99", &p99).target(Target::AtMost(1.0)), row("max", &max)])
}

/// Measures the time to process many deadlines at the same instant.
fn at_once(bench: &Bench, world: &mut World) -> Result<Row> {
    let count = bench.options.pick(10_000, 100);
    // All objects must be stored and observed, and the operator at rest, before the deadline.
    let after = milliseconds(bench.options.pick(45, 6) * 1000);
    let all = bench.options.pairs();
    let mut pairs = Vec::new();
    for pair in 1..=all {
        let step = |writer: &str| {
            bench.progress.step(&format!("pair {pair} of {all}, {count} deadlines at one instant, {writer}"));
        };
        step("switchboard");
        world.bare()?;
        let (template, observers) = bench.runtime.block_on(prepare(world, count, |_| after))?;
        world.in_force(true)?;
        let due = template.creation_time()?.after(after);
        let ours = bench.runtime.block_on(observers.seconds_from(due, count, async { Ok(()) }))?;
        world.empty(NAMESPACE)?;

        step("a bare client");
        world.bare()?;
        let bare = bench.runtime.block_on(async {
            let (template, observers) = prepare(world, count, |_| after).await?;
            let due = template.creation_time()?.after(after);
            let work = work_of_a_bare_client(world).await?;
            observers.seconds_from(due, count, work).await
        })?;
        world.empty(NAMESPACE)?;
        bench.progress.pair(pair, (ours, bare));
        pairs.push((ours, bare));
    }
    let row = Row::pairs(7, format!("{count} deadlines at one instant, closed and released"), Unit::Seconds, &pairs);
    Ok(row.target(Target::AtMost(1.3)))
}

/// The watches of the conversations and the claims.
struct Observers {
    conversations: Observer,
    claims: Observer,
}

impl Observers {
    /// Starts `work` at `due`, and returns the seconds until all `count` conversations are observed as closed and their claims as deleted.
    async fn seconds_from(
        mut self,
        due: Time,
        count: usize,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Result<f64> {
        let due = instant(due)?;
        let early = self.conversations.wait_until("anything", |_| true).await?.closed.len();
        if early > 0 || Instant::now() >= due {
            return Err(Error::Unexpected(format!(
                "the deadline passed before the preparation was complete ({early} closed)"
            )));
        }
        sleep_until(due.into()).await;
        tokio::spawn(work).await??;
        self.conversations.wait_until("all closed", |seen| seen.closed.len() == count).await?;
        // The claim of the sentinel stays.
        self.claims.wait_until("all released", |seen| seen.claims.len() <= 1).await?;
        Ok(due.elapsed().as_secs_f64())
    }
}

/// Stores open conversations with their claims and statuses. Each closes after the duration that `close_after` returns.
async fn prepare(
    world: &World<'_>,
    count: usize,
    close_after: impl Fn(usize) -> Duration,
) -> Result<(Template, Observers)> {
    let text_of = |after: Duration| format!("{}s{}ms", after.as_secs(), after.subsec_millis());
    let client = BareClient::new(world.administrator());
    let batch = Batch::new(NAMESPACE).close_after(&text_of(close_after(0)));
    let etcd = world.etcd()?;
    let template = Template::make(&client, &etcd, &batch).await?;
    let creation = template.creation_time()?;
    let edit = |number: usize, conversation: &mut Value| {
        let after = close_after(number);
        conversation["spec"]["timers"]["closeAfter"] = json!(text_of(after));
        conversation["status"]["deadlines"]["closeTime"] = json!(creation.after(after));
    };
    template.copy(&etcd, 1..count, edit).await?;
    let observers = Observers {
        conversations: Observer::of_conversations(world.administrator(), NAMESPACE).await?,
        claims: Observer::of_claims(world.administrator()).await?,
    };
    Ok((template, observers))
}

/// Reads all stored objects now, and returns a future that closes the conversations and releases their claims, with as many concurrent
/// writers as the operator has.
async fn work_of_a_bare_client(world: &World<'_>) -> Result<impl Future<Output = Result<()>> + Send + 'static> {
    let conversations = Api::<Conversation>::namespaced(world.administrator(), NAMESPACE);
    let claims = Api::<AddressBinding>::all(world.administrator());
    let claims = claims.list(&ListParams::default()).await?.items.into_iter();
    let mut claims: HashMap<_, _> = claims.map(|claim| (claim.spec.conversation_ref.name.clone(), claim)).collect();
    let work: Vec<_> = conversations
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .filter_map(|conversation| Some((claims.remove(&conversation.name_any())?, conversation)))
        .collect();
    let (work, clients) = (Arc::new(work), BareClient::each(world.clients(WRITERS).await?));
    Ok(async move {
        let count = work.len();
        let close = move |bare: BareClient, number: usize| {
            let work = work.clone();
            async move {
                let (claim, conversation) = &work[number];
                bare.status(conversation).await?;
                bare.release(claim).await
            }
        };
        drive(&clients, count, close).await.map(drop)
    })
}

/// Converts a wall-clock time to the monotonic clock.
fn instant(time: Time) -> Result<Instant> {
    let (now, ahead) = (Instant::now(), time.duration_since(Clock.now()));
    let behind = Clock.now().duration_since(time);
    let instant = (now + ahead).checked_sub(behind);
    instant.ok_or_else(|| Error::Unexpected(format!("{time} is before the start of this machine")))
}

fn milliseconds(count: usize) -> Duration {
    Duration::from_millis(u64::try_from(count).unwrap_or(u64::MAX))
}
