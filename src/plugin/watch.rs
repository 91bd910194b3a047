//! `watch`: `list` as a live table, on a terminal.

use super::cluster::{Cluster, Connection};
use super::error::Error;
use super::list::{OPEN, Row, Selection};
use super::output::print;
use super::text::instant;
use crate::clock::Clock;
use crate::telemetry::error_chain::ErrorChain;
use clap::Args;
use futures::StreamExt;
use kube::api::DynamicObject;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use std::collections::BTreeMap;
use std::io::{IsTerminal, stdout};
use std::pin::pin;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// The interval at which the table is drawn: its ages are whole seconds.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);
/// Enters the alternate screen of the terminal, without a cursor and without line breaks.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// Leaves it again.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Moves to the first line.
const HOME: &str = "\x1b[H";
/// Ends a line, and clears what it had before.
const END_OF_LINE: &str = "\x1b[K\r\n";
/// Clears the rest of the screen.
const CLEAR: &str = "\x1b[J";
/// The number of lines of a terminal that does not tell it.
const LINES: usize = 24;

/// The conversations to watch.
#[derive(Args, Debug)]
pub struct Watch {
    #[command(flatten)]
    selection: Selection,
    /// Show more columns
    #[arg(long)]
    wide: bool,
}

/// The namespace and name of a conversation.
type Key = (Option<String>, Option<String>);

/// The conversations, as the watch shows them.
#[derive(Default)]
struct Table {
    rows: BTreeMap<Key, Row>,
    /// The rows of a list that is not complete yet.
    listed: BTreeMap<Key, Row>,
    /// Why the rows may be outdated, or one is missing.
    problem: Option<String>,
}

impl Watch {
    /// Draws the table until the user interrupts it.
    ///
    /// # Errors
    /// If there is no terminal, or the conversations cannot be listed.
    pub async fn run(&self, connection: &Connection) -> Result<(), Error> {
        if !stdout().is_terminal() {
            return Err(Error::Usage(
                "watch needs a terminal; use `kubectl switchboard list`, or `kubectl get conversations --watch`"
                    .to_owned(),
            ));
        }
        let cluster = connection.connect().await?;
        // If the user may not list them, this says so before the screen is taken.
        self.selection.read(&cluster).await?;
        print(ENTER)?;
        let result = self.draw(&cluster).await;
        print(LEAVE)?;
        result
    }

    async fn draw(&self, cluster: &Cluster) -> Result<(), Error> {
        let mut table = Table::default();
        let conversations = cluster.conversations(self.selection.namespace(cluster));
        let mut events = pin!(watcher(conversations, Config::default().fields(OPEN)).default_backoff());
        let mut interrupt = pin!(tokio::signal::ctrl_c());
        let mut redraw = interval(REDRAW_INTERVAL);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(event) = events.next() => table.apply(event),
                _ = redraw.tick() => print(&self.screen(cluster, &table))?,
                _ = &mut interrupt => return Ok(()),
            }
        }
    }

    fn screen(&self, cluster: &Cluster, table: &Table) -> String {
        let now = Clock.now();
        let rows = self.selection.select(table.rows.values().collect(), now);
        let place = self.selection.namespace(cluster).unwrap_or("all namespaces");
        let title = format!("Open conversations in {place}: {}, at {}. Ctrl-C ends.", rows.len(), instant(now));
        let text = self.selection.table(&rows, self.wide, now);
        let height = terminal_size::terminal_size().map_or(LINES, |(_, height)| usize::from(height.0));
        let lines = [title].into_iter().chain(table.problem.clone()).chain([String::new()]);
        let lines = lines.chain(text.lines().map(str::to_owned)).take(height.saturating_sub(1));
        let lines = lines.map(|line| line + END_OF_LINE).collect::<String>();
        format!("{HOME}{lines}{CLEAR}")
    }
}

impl Table {
    fn apply(&mut self, event: watcher::Result<Event<DynamicObject>>) {
        let added = match event {
            Err(error) => {
                self.problem = Some(format!("the table may be outdated: {}", ErrorChain(&error)));
                return;
            }
            Ok(Event::Init) => {
                self.listed.clear();
                Ok(())
            }
            Ok(Event::InitApply(object)) => add(&mut self.listed, object),
            Ok(Event::InitDone) => {
                self.rows = std::mem::take(&mut self.listed);
                Ok(())
            }
            Ok(Event::Apply(object)) => add(&mut self.rows, object),
            Ok(Event::Delete(object)) => {
                self.rows.remove(&key(&object));
                Ok(())
            }
        };
        self.problem = added.err().map(|error| error.to_string());
    }
}

fn key(object: &DynamicObject) -> Key {
    (object.metadata.namespace.clone(), object.metadata.name.clone())
}

fn add(rows: &mut BTreeMap<Key, Row>, object: DynamicObject) -> Result<(), Error> {
    rows.insert(key(&object), Row::of(object)?);
    Ok(())
}
