//! Scenario 6: the time from the start of a replica until it is ready, compared with a bare client that lists both kinds concurrently in
//! pages.

use std::time::Instant;

use kube::{Api, Client, Resource, api::ListParams};
use serde::de::DeserializeOwned;
use switchboard::api::{AddressBinding, Conversation};

use crate::{
    error::{Error, Result},
    report::{Row, Target, Unit},
    seed::Seed,
    world::{Bench, Setup, World},
};

/// The usual page size of Kubernetes clients.
const PAGE: u32 = 500;

/// Runs the measurement.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let count = bench.options.many();
    let data = Seed::Open(count).data(bench)?;
    let world = World::start(bench, &Setup { data, leads: true, ..Setup::default() })?;
    world.wait_until_at_rest()?;
    let all = bench.options.pairs();
    let mut pairs = Vec::new();
    for pair in 1..=all {
        bench.progress.step(&format!("pair {pair} of {all}, a restart"));
        let replica = world.installation().replica(0);
        replica.kill();
        let started = Instant::now();
        replica.start()?;
        let ours = started.elapsed().as_secs_f64();
        bench.progress.step(&format!("pair {pair} of {all}, a bare list"));
        replica.kill();
        let started = Instant::now();
        bench.runtime.block_on(async {
            let [conversations, claims]: [Client; 2] = world.clients(2).await?.try_into().map_err(|_| no_clients())?;
            let conversations = tokio::spawn(list::<Conversation>(conversations));
            let claims = tokio::spawn(list::<AddressBinding>(claims));
            conversations.await??;
            claims.await?
        })?;
        let measured = (ours, started.elapsed().as_secs_f64());
        bench.progress.pair(pair, measured);
        pairs.push(measured);
    }
    let row = Row::pairs(6, format!("restart until ready with {count} stored"), Unit::Seconds, &pairs);
    Ok(vec![row.target(Target::AtMost(1.5))])
}

fn no_clients() -> Error {
    Error::Unexpected("expected two clients".to_owned())
}

/// Lists all objects of a kind, and drops them.
async fn list<K>(client: Client) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let objects = Api::<K>::all(client);
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = objects.list(&parameters).await?;
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(()),
        }
    }
}
