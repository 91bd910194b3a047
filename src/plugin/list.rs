//! `list`: the open conversations that need attention.

use super::cluster::{Cluster, Connection, Stored, without_managed_fields};
use super::error::Error;
use super::output::{Format, Styles, json, note, warn, yaml};
use super::text::{Cell, NONE, columns, distance, human, listed};
use crate::api::{ConditionType, Duration, State, Time};
use crate::clock::Clock;
use crate::core::lifecycle::LifecycleInput;
use crate::core::manager::Manager;
use clap::Args;
use kube::api::{DynamicObject, ListParams};
use serde_json::json as object;

/// The number of conversations in a page.
const PAGE: u32 = 500;

/// The field selector of open conversations.
pub const OPEN: &str = "status.state!=Closed";

/// `list`: the conversations, and the format.
#[derive(Args, Debug)]
pub struct List {
    #[command(flatten)]
    selection: Selection,
    /// Format of the result
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// The open conversations to which all filters apply.
#[derive(Args, Debug)]
pub struct Selection {
    /// Those of all namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Only those without a participant
    #[arg(long)]
    unassigned: bool,
    /// Only those that wait for their binding, because another conversation holds it
    #[arg(long)]
    waiting: bool,
    /// Only those that a timer closes within this time, such as 1h
    #[arg(long, value_name = "DURATION")]
    closing_within: Option<Duration>,
    /// Only those with this participant
    #[arg(long, value_name = "IDENTITY")]
    held_by: Option<String>,
}

/// A conversation in the list, and what the filters and the table need of it.
pub struct Row {
    /// The conversation.
    pub stored: Stored,
    input: LifecycleInput,
    participants: Vec<String>,
    closes: Option<Time>,
}

impl Row {
    /// The row of a conversation.
    ///
    /// # Errors
    /// If the conversation is invalid.
    pub fn of(object: DynamicObject) -> Result<Self, Error> {
        let stored = Stored::of(object)?;
        let participants = stored.conversation.spec.participants.iter().flatten();
        let participants = participants.map(|participant| participant.identity.clone()).collect();
        let deadlines = stored.conversation.status.as_ref().and_then(|status| status.deadlines.as_ref());
        let closes = deadlines.and_then(|deadlines| deadlines.close_time);
        let input = LifecycleInput::of(&stored.conversation);
        let input = input.map_err(|cause| Error::Invalid { place: stored.place().to_string(), cause })?;
        Ok(Self { stored, input, participants, closes })
    }

    fn cells(&self, is_wide: bool, has_namespace: bool, styles: Styles, now: Time) -> Vec<Cell> {
        let (place, spec) = (self.stored.place(), &self.stored.conversation.spec);
        let state = self.input.state_in_effect();
        let bound = self.stored.condition(ConditionType::Bound);
        let contact = spec.contact.as_ref().map_or(NONE, |contact| contact.address.as_str());
        let time = |time: Option<Time>| time.map_or_else(|| NONE.to_owned(), |time| distance(time, now));
        let mut cells: Vec<Cell> = Vec::new();
        cells.extend(has_namespace.then(|| place.namespace.into()));
        cells.extend([
            place.name.into(),
            spec.channel.as_str().into(),
            contact.into(),
            spec.proxy.address.as_str().into(),
        ]);
        cells.push(Cell::styled(state.as_str(), styles.choose(Styles::of_state(state))));
        cells.push(listed(&self.participants).into());
        cells.push(bound.map_or_else(|| NONE.to_owned(), |condition| format!("{:?}", condition.status)).into());
        cells.push(time(self.closes).into());
        cells.push(human(now.duration_since(self.input.creation_time)).into());
        if is_wide {
            let deadlines = self.stored.conversation.status.as_ref().and_then(|status| status.deadlines.as_ref());
            let manager = Manager::of(&self.stored.conversation.metadata).map(|manager| manager.to_string());
            cells.push(bound.map_or_else(|| NONE.to_owned(), |condition| format!("{:?}", condition.reason)).into());
            cells.push(time(deadlines.and_then(|deadlines| deadlines.inactive_time)).into());
            cells.push(time(self.input.unassigned_since()).into());
            cells.push(manager.unwrap_or_else(|| NONE.to_owned()).into());
        }
        cells
    }
}

impl List {
    /// Lists the conversations.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn run(&self, connection: &Connection) -> Result<String, Error> {
        let Self { selection, output } = self;
        let cluster = connection.connect().await?;
        let now = Clock.now();
        let rows = selection.read(&cluster).await?;
        let rows = selection.select(rows.iter().collect(), now);
        match output {
            Format::Json | Format::Yaml => {
                let items: Vec<_> = rows.iter().map(|row| without_managed_fields(&row.stored.object)).collect();
                let list = object!({"apiVersion": "v1", "kind": "List", "items": items});
                if *output == Format::Json { json(&list) } else { yaml(&list) }
            }
            Format::Name => Ok(rows.iter().map(|row| row.stored.place().to_string() + "\n").collect()),
            Format::Table | Format::Wide => {
                if rows.is_empty() {
                    let place = selection.namespace(&cluster).unwrap_or("any namespace");
                    note(&format!("no open conversation in {place} matches"));
                    return Ok(String::new());
                }
                Ok(selection.table(&rows, *output == Format::Wide, now))
            }
        }
    }
}

impl Selection {
    /// The namespace; `None` for all.
    pub fn namespace<'a>(&self, cluster: &'a Cluster) -> Option<&'a str> {
        (!self.all_namespaces).then_some(cluster.namespace.as_str())
    }

    /// Reads the open conversations of the namespace, in pages, and warns of invalid ones.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn read(&self, cluster: &Cluster) -> Result<Vec<Row>, Error> {
        let namespace = self.namespace(cluster);
        let conversations = cluster.conversations(namespace);
        let action = namespace.map_or_else(
            || "list the conversations of all namespaces".to_owned(),
            |namespace| format!("list the conversations of the namespace {namespace}"),
        );
        let mut rows = Vec::new();
        let mut parameters = ListParams::default().fields(OPEN).limit(PAGE);
        loop {
            let page = conversations.list(&parameters).await.map_err(Error::request(&action))?;
            for item in page.items {
                match Row::of(item) {
                    Ok(row) => rows.push(row),
                    Err(error) => warn(&format!("{error}; it is omitted")),
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => return Ok(rows),
            }
        }
    }

    /// The rows to which all filters apply, the most urgent first.
    pub fn select<'a>(&self, mut rows: Vec<&'a Row>, now: Time) -> Vec<&'a Row> {
        rows.retain(|row| self.selects(row, now));
        if self.closing_within.is_some() {
            rows.sort_by_key(|row| row.closes);
        } else if self.waiting {
            // The order in which they get a binding.
            rows.sort_by_key(|row| row.input.creation_time);
        }
        rows
    }

    fn selects(&self, row: &Row, now: Time) -> bool {
        let closes_in_time = |within: Duration| row.closes.is_some_and(|time| time <= now.after(within.as_std()));
        row.input.state_in_effect() != State::Closed
            && (!self.unassigned || row.input.is_unassigned)
            && (!self.waiting || row.input.waiting_since().is_some())
            && self.closing_within.is_none_or(closes_in_time)
            && self.held_by.as_ref().is_none_or(|identity| row.participants.contains(identity))
    }

    /// The rows as a table.
    pub fn table(&self, rows: &[&Row], is_wide: bool, now: Time) -> String {
        let styles = Styles::of_stdout();
        let titles = ["NAME", "CHANNEL", "CONTACT", "PROXY", "STATE", "ASSIGNED-TO", "BOUND", "CLOSES", "AGE"];
        let namespace = self.all_namespaces.then_some("NAMESPACE");
        let wide: &[&str] = if is_wide { &["REASON", "INACTIVE", "UNASSIGNED", "MANAGED-BY"] } else { &[] };
        let titles = namespace.into_iter().chain(titles).chain(wide.iter().copied());
        let header = titles.map(|title| Cell::styled(title, styles.choose(Styles::HEADER))).collect();
        let rows = rows.iter().map(|row| row.cells(is_wide, self.all_namespaces, styles, now));
        columns(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
    }
}
