//! Completion: kubectl runs `kubectl_complete-switchboard` with the words after `switchboard`, the last of which is to be completed. It
//! prints a candidate in each line, and a directive for the shell at the end.
//!
//! Commands, flags and their values come from the command line of the plugin itself; only the names of conversations need the API server.

use super::cli::Cli;
use super::cluster::{Cluster, Connection};
use super::codes::CODES;
use super::error::Error;
use super::list::OPEN;
use super::output::print;
use crate::api::Channel;
use clap::{Arg, Command, CommandFactory, FromArgMatches};
use kube::api::ListParams;
use std::iter;
use std::process::ExitCode;
use std::time::Duration;
use strum::VariantArray;
use tokio::time::timeout;

/// The name by which kubectl looks for completion. It can be a link to the plugin.
pub const PROGRAM: &str = "kubectl_complete-switchboard";
/// cobra's directive that the shell must not complete names of files.
const NO_FILES: &str = ":4";
/// The time for which a user waits for the names of conversations.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The number of conversations that are offered.
const OFFERED: u32 = 500;

/// What completes a word.
#[derive(Debug, PartialEq, Eq)]
enum Completion {
    /// These words, each with its help after a tab.
    Words(Vec<String>),
    /// The codes, and the names of conversations.
    CodesAndConversations,
    /// The names of conversations.
    Conversations,
}

/// Prints the candidates for the last of `words`.
///
/// # Errors
/// If they cannot be written.
pub async fn run(words: &[String]) -> Result<ExitCode, Error> {
    print(&candidates(words).await)?;
    Ok(ExitCode::SUCCESS)
}

async fn candidates(words: &[String]) -> String {
    let Some((last, before)) = words.split_last() else { return format!("{NO_FILES}\n") };
    let mut command = Cli::command();
    command.build();
    let candidates = match completion(&command, before, last) {
        Completion::Words(words) => words,
        Completion::Conversations => conversations(before, last).await,
        Completion::CodesAndConversations => {
            let codes = CODES.iter().map(|code| format!("{}\t{}", code.digits, code.title));
            codes.chain(conversations(before, last).await).collect()
        }
    };
    let matching = candidates.into_iter().filter(|candidate| candidate.starts_with(last.as_str()));
    matching.chain([NO_FILES.to_owned()]).map(|line| line + "\n").collect()
}

/// What completes `last` after the words `before`.
fn completion(command: &Command, before: &[String], last: &str) -> Completion {
    let mut current = command;
    let mut positionals = 0;
    let mut awaits_value: Option<&Arg> = None;
    for word in before {
        if awaits_value.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            awaits_value = flag(current, word).filter(|flag| !word.contains('=') && takes_value(flag));
        } else if let Some(subcommand) = current.find_subcommand(word) {
            current = subcommand;
        } else {
            positionals += 1;
        }
    }
    if let Some(flag) = awaits_value {
        return Completion::Words(values(flag, ""));
    }
    if let Some((name, _)) = last.split_once('=') {
        let prefix = format!("{name}=");
        return Completion::Words(flag(current, name).map(|flag| values(flag, &prefix)).unwrap_or_default());
    }
    if last.starts_with('-') {
        let flags = current.get_arguments().filter_map(|flag| Some((flag.get_long()?, flag)));
        return Completion::Words(flags.map(|(long, flag)| described(&format!("--{long}"), flag.get_help())).collect());
    }
    if current.has_subcommands() {
        let named = |command: &Command| described(command.get_name(), command.get_about());
        return Completion::Words(current.get_subcommands().map(named).collect());
    }
    match current.get_positionals().nth(positionals).map(|positional| positional.get_id().as_str()) {
        Some("target") => Completion::Conversations,
        Some("topic") => Completion::CodesAndConversations,
        Some("channel") => Completion::Words(Channel::VARIANTS.iter().map(ToString::to_string).collect()),
        _ => Completion::Words(Vec::new()),
    }
}

fn described(word: &str, help: Option<&clap::builder::StyledStr>) -> String {
    help.map_or_else(|| word.to_owned(), |help| format!("{word}\t{help}"))
}

/// The flag that `word` names, with or without a value.
fn flag<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let name = word.split('=').next().unwrap_or(word);
    command.get_arguments().find(|flag| match name.strip_prefix("--") {
        Some(long) => flag.get_long() == Some(long),
        None => flag.get_short().is_some_and(|short| name == format!("-{short}")),
    })
}

fn takes_value(flag: &Arg) -> bool {
    flag.get_action().takes_values()
}

fn values(flag: &Arg, prefix: &str) -> Vec<String> {
    flag.get_possible_values().iter().map(|value| format!("{prefix}{}", value.get_name())).collect()
}

/// The open conversations, as far as the user may list them: `NAME`, or `NAMESPACE/NAME` if the word has a namespace.
async fn conversations(before: &[String], last: &str) -> Vec<String> {
    timeout(TIMEOUT, listed(before, last)).await.ok().and_then(Result::ok).unwrap_or_default()
}

async fn listed(before: &[String], last: &str) -> Result<Vec<String>, Error> {
    let cluster = connection(before).connect().await?;
    let (namespace, prefix) = match last.split_once('/') {
        Some((namespace, _)) => (namespace.to_owned(), format!("{namespace}/")),
        None => (cluster.namespace.clone(), String::new()),
    };
    names(&cluster, &namespace).await.map(|names| names.into_iter().map(|name| prefix.clone() + &name).collect())
}

async fn names(cluster: &Cluster, namespace: &str) -> Result<Vec<String>, Error> {
    let open = ListParams::default().fields(OPEN).limit(OFFERED);
    let list = cluster.conversations(Some(namespace)).list_metadata(&open).await;
    let list = list.map_err(Error::request("list the conversations"))?;
    Ok(list.items.into_iter().filter_map(|object| object.metadata.name).collect())
}

/// The flags of the cluster among words that may be incomplete otherwise.
fn connection(words: &[String]) -> Connection {
    let command = Cli::command().ignore_errors(true);
    let matches = command.try_get_matches_from(iter::once("kubectl").chain(words.iter().map(String::as_str))).ok();
    matches.and_then(|matches| Connection::from_arg_matches(&matches).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(words: &[&str]) -> Completion {
        let mut command = Cli::command();
        command.build();
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let (last, before) = words.split_last().unwrap();
        completion(&command, before, last)
    }

    /// The candidates without their help.
    fn words(words: &[&str]) -> Vec<String> {
        let Completion::Words(words) = completed(words) else { panic!("not words") };
        words.iter().map(|word| word.split('\t').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn place_of_the_word_decides_what_completes_it() {
        for (typed, expected) in [
            (&["close", ""][..], Completion::Conversations),
            (&["close", "--namespace", "sales", "al"], Completion::Conversations),
            (&["--context=here", "transfer", "--to", "agent-9", ""], Completion::Conversations),
            (&["explain", ""], Completion::CodesAndConversations),
            (&["close", "alice", ""], Completion::Words(vec![])),
            (&["who", "sms", ""], Completion::Words(vec![])),
            (&["close", "--context", ""], Completion::Words(vec![])),
        ] {
            assert_eq!(completed(typed), expected, "{typed:?}");
        }
    }

    #[test]
    fn commands_flags_and_values_are_those_of_the_command_line() {
        let commands = words(&[""]);
        assert!(
            ["who", "list", "explain", "close"].iter().all(|name| commands.contains(&(*name).to_owned())),
            "{commands:?}"
        );
        assert!(completed(&[""]) == completed(&["-n", "sales", ""]), "{commands:?}");
        let flags = words(&["close", "--"]);
        assert!(flags.contains(&"--dry-run".to_owned()) && flags.contains(&"--namespace".to_owned()), "{flags:?}");
        assert!(!flags.contains(&"--unassigned".to_owned()), "{flags:?}");
        assert_eq!(words(&["close", "--dry-run", ""]), ["server"]);
        assert_eq!(words(&["close", "--dry-run=s"]), ["--dry-run=server"]);
        assert_eq!(words(&["list", "-o", ""]), ["table", "wide", "json", "yaml", "name"]);
        assert_eq!(words(&["who", ""]).first().map(String::as_str), Some("SMS"));
    }
}
