//! Scenario 4: 50 clients race for one binding, compared with 50 clients that create conversations for different bindings.

use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use switchboard::api::Conversation;

use crate::{
    error::{Error, Result},
    load::drive,
    report::{Row, Unit, as_f64},
    workload::Batch,
    world::{Bench, Setup, World},
};

const NAMESPACE: &str = "bench-races";
/// The number of clients in a race.
pub const RACERS: usize = 50;

/// Runs the measurement.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let world = World::start(bench, &Setup { leads: true, ..Setup::default() })?;
    world.namespace(NAMESPACE)?;
    let rounds = bench.options.pick(20, 2);
    bench.progress.step(&format!("{rounds} rounds of {RACERS} clients"));
    let (pairs, winners) = bench.runtime.block_on(async {
        let clients = world.clients(RACERS).await?;
        let (mut pairs, mut winners) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let race = race(&clients, NAMESPACE, |client, racer| create(client, NAMESPACE, racer)).await?;
            let batch = Batch::new(NAMESPACE);
            let work = move |client, number| {
                let batch = batch.clone();
                async move { batch.create(client, number).await.map(drop) }
            };
            let each_its_own = drive(&clients, RACERS, work).await?;
            pairs.push((race.milliseconds, each_its_own.seconds * 1e3));
            winners.push(as_f64(race.stored));
        }
        Ok::<_, Error>((pairs, winners))
    })?;
    if let Some(winners) = winners.iter().find(|winners| **winners > 1.0) {
        return Err(Error::Unexpected(format!("{winners} conversations got the same binding")));
    }
    Ok(vec![
        Row::pairs(4, format!("{RACERS} clients race for one binding ÷ create {RACERS}"), Unit::Milliseconds, &pairs),
        Row::figures(4, "  stored, of a race", Unit::Count, &winners),
    ])
}

/// The outcome of a race.
pub struct Race {
    /// The time until the last create was answered.
    pub milliseconds: f64,
    /// The number of conversations that were stored for the binding.
    pub stored: usize,
}

/// Each client creates a conversation for the same binding at the same time with `create`. A refusal is not an error.
pub async fn race<F>(
    clients: &[Client],
    namespace: &str,
    create: impl Fn(Client, Conversation) -> F + Clone + Send + 'static,
) -> Result<Race>
where
    F: Future<Output = kube::Result<()>> + Send + 'static,
{
    let batch = Batch::new(namespace);
    let before = stored(&clients[0], namespace).await?;
    let attempt = move |client, number| {
        let (batch, create) = (batch.clone(), create.clone());
        async move {
            let mut racer = batch.conversation(0)?;
            racer.metadata.name = racer.metadata.name.map(|name| format!("{name}-{number}"));
            match create(client, racer).await {
                Ok(()) => Ok(()),
                // 409: the object that represents the claim on the binding exists already.
                Err(kube::Error::Api(status)) if status.code == 403 || status.code == 409 => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
    };
    let drive = drive(clients, clients.len(), attempt).await?;
    let stored = stored(&clients[0], namespace).await? - before;
    Ok(Race { milliseconds: drive.seconds * 1e3, stored })
}

/// Creates a conversation.
pub async fn create(client: Client, namespace: &str, conversation: Conversation) -> kube::Result<()> {
    Api::namespaced(client, namespace).create(&PostParams::default(), &conversation).await.map(drop)
}

/// The number of conversations in a namespace.
async fn stored(client: &Client, namespace: &str) -> Result<usize> {
    let conversations = Api::<Conversation>::namespaced(client.clone(), namespace);
    Ok(conversations.list(&ListParams::default()).await?.items.len())
}
