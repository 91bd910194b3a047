//! Concurrent clients, each of which processes one item of work after another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::task::JoinSet;

use crate::{error::Result, report::as_f64};

/// The durations of a run.
pub struct Drive {
    /// The time from the start of the first item to the end of the last one, in seconds.
    pub seconds: f64,
    /// The duration of each item, in milliseconds.
    pub milliseconds: Vec<f64>,
}

impl Drive {
    /// Items per second.
    pub fn rate(&self) -> f64 {
        as_f64(self.milliseconds.len()) / self.seconds
    }
}

/// Processes the items from 0 to `count`. Each client takes the next item when it is free.
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
