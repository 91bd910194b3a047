//! The command line of the plugin.

use super::change::Change;
use super::cluster::Connection;
use super::edit::Edit;
use super::error::{Error, NOT_FOUND};
use super::explain::Explain;
use super::list::List;
use super::output::{fail, print};
use super::watch::Watch;
use super::who::Who;
use crate::telemetry::metrics::{COMMIT, VERSION};
use clap::{ArgGroup, Parser, Subcommand};
use std::process::ExitCode;
use std::sync::LazyLock;

/// Who holds a binding of switchboard, what needs attention and why, and changes of conversations.
///
/// A CONVERSATION is NAME, in the namespace of --namespace or of the context, or NAMESPACE/NAME.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-switchboard",
    bin_name = "kubectl switchboard",
    version,
    long_version = LONG_VERSION.as_str(),
    max_term_width = 120,
    after_long_help = MORE
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    connection: Connection,
}

/// The output of `--version`.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| format!("{VERSION}\ncommit {COMMIT}"));

const MORE: &str = "\
Examples:
  kubectl switchboard who sms '+1 (555) 867-5310' +15017122661
  kubectl switchboard list --all-namespaces --unassigned
  kubectl switchboard explain sales/alice
  kubectl switchboard transfer sales/alice --to agent-9 --diff

Colours are used on a terminal only, and not if NO_COLOR is set.

Exit codes:
  0  success
  1  failure; the last line on stderr has the cause and the next step
  2  invalid command line
  3  the conversation does not exist, or no conversation holds the binding";

/// Runs a command to its end. Its failure is the last line on stderr.
pub(super) fn run(command: impl Future<Output = Result<ExitCode, Error>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Error::from).and_then(|runtime| runtime.block_on(command)) {
        Ok(code) => code,
        Err(error) => {
            fail(&error);
            error.exit_code()
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the conversation that holds a binding, and those that wait for it, in all namespaces
    Who(Who),
    /// List the open conversations that all of the filters select
    List(List),
    /// Show the open conversations as a live table, until Ctrl-C
    Watch(Watch),
    /// Explain an error code, or the state of a conversation, with the ways out
    Explain(Explain),
    /// Replace a participant by another one, in one write
    Transfer {
        #[command(flatten)]
        edit: Edit,
        /// Identity that takes over
        #[arg(long, value_name = "IDENTITY")]
        to: String,
        /// Identity that leaves [default: the only participant]
        #[arg(long, value_name = "IDENTITY")]
        from: Option<String>,
    },
    /// Add a participant
    Assign {
        #[command(flatten)]
        edit: Edit,
        /// Identity of the participant; may be repeated
        #[arg(long, value_name = "IDENTITY", required = true)]
        to: Vec<String>,
    },
    /// Remove a participant, or all of them
    #[command(group = ArgGroup::new("who").required(true).args(["from", "all"]))]
    Unassign {
        #[command(flatten)]
        edit: Edit,
        /// Identity of the participant; may be repeated
        #[arg(long, value_name = "IDENTITY")]
        from: Vec<String>,
        /// Remove all participants
        #[arg(long)]
        all: bool,
    },
    /// Close a conversation, which is final and frees its binding
    Close(Edit),
    /// Remove the contact of a conversation, which frees its binding
    Release(Edit),
}

impl Cli {
    /// Runs the command.
    #[must_use]
    pub fn run(self) -> ExitCode {
        run(self.execute())
    }

    async fn execute(self) -> Result<ExitCode, Error> {
        let Self { command, connection } = self;
        let text = match command {
            Command::Who(who) => {
                let (text, is_found) = who.run(&connection).await?;
                print(&text)?;
                return Ok(if is_found { ExitCode::SUCCESS } else { NOT_FOUND.into() });
            }
            Command::List(list) => list.run(&connection).await?,
            Command::Watch(watch) => return watch.run(&connection).await.map(|()| ExitCode::SUCCESS),
            Command::Explain(explain) => explain.run(&connection).await?,
            Command::Transfer { edit, to, from } => edit.run(&connection, &Change::Transfer { from, to }).await?,
            Command::Assign { edit, to } => edit.run(&connection, &Change::Assign { to }).await?,
            // All of them if none is named.
            Command::Unassign { edit, from, all: _ } => edit.run(&connection, &Change::Unassign { from }).await?,
            Command::Close(edit) => edit.run(&connection, &Change::Close).await?,
            Command::Release(edit) => edit.run(&connection, &Change::Release).await?,
        };
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_and_flag_has_help() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            assert!(subcommand.get_about().is_some(), "{} has no help", subcommand.get_name());
            for argument in subcommand.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", subcommand.get_name(), argument.get_id());
            }
        }
    }
}
