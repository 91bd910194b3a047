//! `transfer`, `assign`, `unassign`, `close` and `release`: a GET, and a patch under the resourceVersion that was
//! read. It is repeated if only the status has changed meanwhile.

use super::change::{self, Change, Outcome};
use super::cluster::{Cluster, Connection, Stored, without_managed_fields};
use super::error::Error;
use super::output::{Format, Styles, json, warn, yaml};
use super::owner::warning;
use super::target::Target;
use crate::kube_error::ErrorClass;
use clap::{Args, ValueEnum};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json as object};
use similar::TextDiff;

/// The field manager of the plugin. It does not start with `kubectl`: Flux takes over what such managers wrote, and would remove
/// participants that its manifests do not even mention.
const FIELD_MANAGER: &str = "switchboard-cli";

/// The maximum number of writes that meet a new status.
const MAX_ATTEMPTS: u32 = 5;

/// The conversation to change, and how to show the change.
#[derive(Args, Debug)]
pub struct Edit {
    /// NAME or NAMESPACE/NAME of the conversation
    #[arg(value_name = "CONVERSATION")]
    target: Target,
    /// Send the change to the API server, which checks it and stores nothing
    #[arg(long, value_enum, value_name = "WHERE")]
    dry_run: Option<DryRun>,
    /// Show the change of the spec as a diff
    #[arg(long, conflicts_with = "output")]
    diff: bool,
    /// Format of the result
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Where a change is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// On the API server.
    Server,
}

impl Edit {
    /// Makes the change, and returns the result to print.
    ///
    /// # Errors
    /// If the change is not possible, or the API server refuses it.
    pub async fn run(&self, connection: &Connection, change: &Change) -> Result<String, Error> {
        let cluster = connection.connect().await?;
        let place = cluster.place(&self.target)?;
        let mut stored = cluster.read(&place).await?;
        for attempt in 1.. {
            let edit = match change.of(&stored)? {
                Outcome::Unchanged(why) => return self.shown(&stored, &stored, &format!("unchanged: {why}")),
                Outcome::Edit(edit) => edit,
            };
            if attempt == 1
                && let Some(text) = warning(&stored.conversation.metadata, edit.field)
            {
                warn(&text);
            }
            let Some(changed) = self.patch(&cluster, &stored, &edit).await? else {
                // The operator writes the status at any moment. Only a change of the spec concerns the user.
                let current = cluster.read(&place).await?;
                if attempt == MAX_ATTEMPTS || version_of_spec(&current) != version_of_spec(&stored) {
                    break;
                }
                stored = current;
                continue;
            };
            let suffix = if self.dry_run.is_some() { " (server dry run)" } else { "" };
            return self.shown(&stored, &changed, &format!("{}{suffix}", edit.done));
        }
        Err(Error::Conflict(place.to_string()))
    }

    /// Writes a change of `stored`; `None` if the conversation has changed since it was read.
    async fn patch(&self, cluster: &Cluster, stored: &Stored, edit: &change::Edit) -> Result<Option<Stored>, Error> {
        let place = stored.place();
        let patch = object!({
            "metadata": {"resourceVersion": stored.conversation.metadata.resource_version},
            "spec": {edit.field.as_str(): edit.value},
        });
        let field_manager = Some(FIELD_MANAGER.to_owned());
        let parameters = PatchParams { dry_run: self.dry_run.is_some(), field_manager, ..PatchParams::default() };
        let conversations = cluster.conversations(Some(&place.namespace));
        match conversations.patch(&place.name, &parameters, &Patch::Merge(patch)).await {
            Ok(changed) => Stored::of(changed).map(Some),
            Err(error) => match ErrorClass::of(&error) {
                ErrorClass::Conflict => Ok(None),
                ErrorClass::NotFound => Err(Error::NotFound(place.to_string())),
                _ => Err(Error::request(format!("change conversation {place}"))(error)),
            },
        }
    }

    fn shown(&self, before: &Stored, after: &Stored, done: &str) -> Result<String, Error> {
        let place = after.place();
        match self.output {
            Format::Json => json(&without_managed_fields(&after.object)),
            Format::Yaml => yaml(&without_managed_fields(&after.object)),
            Format::Name => Ok(format!("{place}\n")),
            Format::Table | Format::Wide => {
                let diff =
                    if self.diff { diff(&place.to_string(), &before.object, &after.object)? } else { String::new() };
                Ok(format!("{}conversation {place} {done}\n", painted(&diff, Styles::of_stdout())))
            }
        }
    }
}

/// The object and the version of its spec, which a write of the status does not change.
fn version_of_spec(stored: &Stored) -> (Option<&str>, Option<i64>) {
    let metadata = &stored.conversation.metadata;
    (metadata.uid.as_deref(), metadata.generation)
}

/// The specs as a unified diff of YAML; empty if they are equal.
fn diff(place: &str, before: &Value, after: &Value) -> Result<String, Error> {
    let [before, after] = [before, after].map(|whole| yaml(&object!({"spec": whole["spec"]})));
    let (before, after) = (before?, after?);
    Ok(TextDiff::from_lines(before.as_str(), after.as_str()).unified_diff().header(place, place).to_string())
}

/// A unified diff with removed and added lines in colours.
fn painted(diff: &str, styles: Styles) -> String {
    let line = |line: &str| {
        let style = match line.as_bytes().first() {
            Some(b'-') => styles.choose(Styles::ERROR),
            Some(b'+') => styles.choose(Styles::GOOD),
            _ => anstyle::Style::new(),
        };
        format!("{style}{line}{style:#}\n")
    };
    diff.lines().map(line).collect()
}
