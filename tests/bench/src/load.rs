//! Many clients at once, each doing one piece of work after another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::task::JoinSet;

use crate::{error::Result, report::as_f64};

/// How long it all took.
pub struct Drive {
    /// From the start of the first piece of work to the end of the last, in seconds.
    pub seconds: f64,
    /// How long each piece took, in milliseconds.
    pub milliseconds: Vec<f64>,
}

impl Drive {
    /// Pieces of work a second.
    pub fn rate(&self) -> f64 {
        as_f64(self.milliseconds.len()) / self.seconds
    }
}

/// Does the pieces of work from 0 to `count`, as many at once as there are clients: whoever is free takes the next.
pub async fn drive<C, W, F>(clients: &[C], count: usize, work: W) -> Result<Drive>
where
    C: Clone + Send + 'static,
    W: Fn(C, usize) -> F + Clone + Send + 'static,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let mut tasks = JoinSet::<Result<Vec<f64>>>::new();
    for client in clients {
        let (client, next, work) = (client.clone(), next.clone(), work.clone());
        tasks.spawn(async move {
            let mut milliseconds = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(milliseconds);
                }
                let began = Instant::now();
                work(client.clone(), number).await?;
                milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
            }
        });
    }
    let mut milliseconds = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        milliseconds.extend(ended??);
    }
    Ok(Drive { seconds: started.elapsed().as_secs_f64(), milliseconds })
}
