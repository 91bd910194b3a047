//! `explain`: the state of a conversation, or an error code, in sentences, with the ways out.

use super::claim::{Claimed, read_claim};
use super::cluster::{Cluster, Connection, Stored};
use super::codes::{CODES, Code};
use super::error::Error;
use super::output::Styles;
use super::target::Target;
use super::text::{moment, paragraph};

use crate::api::{ConditionReason, ConditionType, State, StateReason, Time};
use crate::clock::Clock;
use crate::core::claim::LiveConversation;
use crate::core::denial::{Disclosure, already_bound_message};
use crate::core::effective::stored_binding;
use crate::core::lifecycle::LifecycleInput;
use crate::core::manager::Manager;
use clap::Args;
use std::str::FromStr;

/// The subject of an explanation.
#[derive(Args, Debug)]
pub struct Explain {
    /// Error code such as 48031, or NAME or NAMESPACE/NAME of a conversation
    #[arg(value_name = "CODE|CONVERSATION")]
    topic: Topic,
}

/// A code or a conversation.
#[derive(Clone, Debug)]
enum Topic {
    Code(&'static Code),
    Conversation(Target),
}

impl FromStr for Topic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_code = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        match Code::of(text) {
            Some(code) => Ok(Self::Code(code)),
            None if is_code => {
                let codes = CODES.iter().map(|code| code.digits).collect::<Vec<_>>().join(", ");
                Err(format!("the codes are {codes}; name a conversation of digits as NAMESPACE/{text}"))
            }
            None => text.parse().map(Self::Conversation),
        }
    }
}

/// A fact about a conversation, and the ways to change it.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    fact: String,
    ways: Vec<String>,
}

impl Finding {
    fn new(fact: impl Into<String>, ways: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { fact: fact.into(), ways: ways.into_iter().map(Into::into).collect() }
    }

    fn fact(fact: impl Into<String>) -> Self {
        Self { fact: fact.into(), ways: Vec::new() }
    }
}

impl Explain {
    /// Explains the topic. A code needs no cluster.
    ///
    /// # Errors
    /// If the conversation does not exist, or cannot be read.
    pub async fn run(&self, connection: &Connection) -> Result<String, Error> {
        let target = match &self.topic {
            Topic::Code(code) => return Ok(code.text()),
            Topic::Conversation(target) => target,
        };
        let cluster = connection.connect().await?;
        let stored = cluster.read(&cluster.place(target)?).await?;
        let Ok(input) = LifecycleInput::of(&stored.conversation) else {
            return Ok(text(&stored, State::Active, &[invalid(&stored)]));
        };
        let blocker = if input.waiting_since().is_some() { blocker(&cluster, &stored).await? } else { None };
        Ok(text(&stored, input.state_in_effect(), &findings(&stored, &input, blocker, Clock.now())))
    }
}

/// The conversation that holds the binding for which `stored` waits, in the words of the refusal.
async fn blocker(cluster: &Cluster, stored: &Stored) -> Result<Option<Finding>, Error> {
    let Ok(Some(binding)) = stored_binding(&stored.conversation) else { return Ok(None) };
    let Some(claim) = read_claim(cluster, &binding).await? else {
        return Ok(Some(Finding::fact(
            "The binding is free at the moment; the oldest conversation that waits gets it",
        )));
    };
    Ok(Some(match Claimed::read(cluster, &claim).await? {
        Claimed::Unreadable => Finding::new(
            format!("Conversation {} holds the binding; you may not read it", claim.holder),
            ["Ask its owner to close it, to remove its contact or to delete it; this frees the binding immediately"],
        ),
        Claimed::Absent => {
            Finding::fact(format!("The binding is being released: conversation {} does not exist", claim.holder))
        }
        Claimed::Stored(holder) => {
            let live = LiveConversation::of(&holder.conversation);
            if claim.is_held_by(&live) {
                Finding::fact(already_bound_message(&binding, &claim.holder, &live, Disclosure::Full))
            } else {
                Finding::fact(format!(
                    "The binding is being released: conversation {} does not hold it any more",
                    claim.holder
                ))
            }
        }
    }))
}

fn invalid(stored: &Stored) -> Finding {
    let error = stored_binding(&stored.conversation).err().map(|error| error.to_string()).unwrap_or_default();
    Finding::new(
        format!("It is invalid, so it gets no binding and no message: {error}"),
        ["Close or delete it, and create another conversation"],
    )
}

fn text(stored: &Stored, state: State, findings: &[Finding]) -> String {
    let styles = Styles::of_stdout();
    let style = styles.choose(Styles::of_state(state));
    let title = format!("Conversation {} is {style}{}{style:#}\n", stored.place(), state.as_str());
    let finding = |Finding { fact, ways }: &Finding| {
        let ways = ways.iter().map(|way| paragraph("  - ", way));
        [paragraph("", fact)].into_iter().chain(ways).collect::<String>()
    };
    [title].into_iter().chain(findings.iter().map(finding)).collect::<Vec<_>>().join("\n")
}

/// What the stored object says, and `blocker`, which holds the binding that it waits for.
fn findings(stored: &Stored, input: &LifecycleInput, blocker: Option<Finding>, now: Time) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(progress(stored, input));
    if input.state_in_effect() == State::Closed {
        findings.push(closed(stored, input, now));
        return findings;
    }
    if input.is_being_deleted {
        let finalizers = stored.conversation.metadata.finalizers.clone().unwrap_or_default().join(", ");
        findings.push(Finding::new(
            format!("It is being deleted and holds no binding; its finalizers keep the object: {finalizers}"),
            ["Let the controllers that own the finalizers remove them"],
        ));
        return findings;
    }
    findings.push(binding(stored, input, now));
    findings.extend(blocker);
    findings.extend(inactive(stored, input));
    findings.extend(unassigned(stored, input, now));
    findings.extend(deadlines(stored, now));
    if let Some(manager) = Manager::of(&stored.conversation.metadata) {
        findings.push(Finding::fact(format!("It is managed by {manager}: make lasting changes there")));
    }
    findings
}

fn progress(stored: &Stored, input: &LifecycleInput) -> Option<Finding> {
    let fact = if input.is_pending() {
        "switchboard has not processed it yet, so its status says nothing".to_owned()
    } else if !input.is_observed() {
        let observed =
            stored.conversation.status.as_ref().and_then(|status| status.observed_generation).unwrap_or_default();
        format!(
            "switchboard has not processed the last change yet: the status is that of generation {observed} of {}",
            input.generation
        )
    } else {
        return None;
    };
    Some(Finding::new(
        fact,
        [
            "If this lasts longer than a few seconds, check that the operator's pods are ready and that one of them leads: \
          kubectl --namespace switchboard-system get pods,leases",
        ],
    ))
}

fn closed(stored: &Stored, input: &LifecycleInput, now: Time) -> Finding {
    let status = stored.conversation.status.clone().unwrap_or_default();
    let cause = match status.state_reason {
        Some(StateReason::CloseTimer) => "the timer closeAfter expired",
        Some(StateReason::UnassignedTimer) => {
            "it had no participant for as long as the timer closeUnassignedAfter allows"
        }
        _ => "spec.state requested it",
    };
    let time = status.closed_time.map(|time| format!(" {}", moment(time, now))).unwrap_or_default();
    let deleted = input.expiry().map(|time| format!(". It will be deleted {}", moment(time, now))).unwrap_or_default();
    Finding::new(
        format!("It was closed{time}, because {cause}{deleted}"),
        [
            "Closed is final. To continue with the contact, create another conversation: kubectl switchboard explain 50377",
        ],
    )
}

fn binding(stored: &Stored, input: &LifecycleInput, now: Time) -> Finding {
    if input.binding.is_none() {
        return Finding::new(
            "It is unbound: it has no contact, so no inbound message reaches it",
            ["A contact cannot be added. To reach the contact, create another conversation"],
        );
    }
    let reason = stored.condition(ConditionType::Bound).map(|condition| condition.reason);
    match (input.waiting_since(), reason) {
        (Some(since), Some(ConditionReason::AddressAlreadyBound)) => Finding::fact(format!(
            "It has been stalled since {}: another conversation holds its binding. It receives no messages, and its timers do not run. It was \
             created while no webhook refused it, and gets the binding as soon as it is free",
            moment(since, now)
        )),
        (Some(since), _) => Finding::fact(format!(
            "It has waited for its binding since {}: another conversation holds it. It receives no messages, and its timers do not run. The \
             oldest conversation that waits gets the binding as soon as it is free",
            moment(since, now)
        )),
        (None, Some(ConditionReason::BindingHeld)) => {
            Finding::fact("It holds its binding: inbound messages for it are routed here")
        }
        (None, _) => Finding::fact("It is not known yet whether it holds its binding"),
    }
}

fn inactive(stored: &Stored, input: &LifecycleInput) -> Option<Finding> {
    if input.state_in_effect() != State::Inactive {
        return None;
    }
    let reason = stored.conversation.status.as_ref().and_then(|status| status.state_reason);
    let (cause, way) = if reason == Some(StateReason::InactiveTimer) {
        (
            "the timer inactiveAfter expired",
            "The next message makes it Active; so does activity that the gateway reports in status.reportedActivityTime",
        )
    } else {
        ("spec.state says so", "Only a change of spec.state makes it Active; activity does not")
    };
    let held = if input.is_bound() { ". It still holds its binding" } else { "" };
    Some(Finding::new(format!("It is Inactive, because {cause}{held}"), [way]))
}

fn unassigned(stored: &Stored, input: &LifecycleInput, now: Time) -> Option<Finding> {
    let since = input.unassigned_since()?;
    let place = stored.place();
    Some(Finding::new(
        format!("It has been unassigned since {}: it has no participant, so no user receives its messages", moment(since, now)),
        [
            format!("Add a participant: kubectl switchboard assign {place} --to IDENTITY"),
            format!("Or close it: kubectl switchboard close {place}"),
            "If unassigned conversations keep appearing, check the inbound routing (autocreation) of the proxy, and set \
             spec.timers.closeUnassignedAfter"
                .to_owned(),
        ],
    ))
}

fn deadlines(stored: &Stored, now: Time) -> Vec<Finding> {
    let status = stored.conversation.status.clone().unwrap_or_default();
    let (deadlines, timers) = (status.deadlines.unwrap_or_default(), status.timers.unwrap_or_default());
    let inactive = deadlines.inactive_time.zip(timers.inactive_after).map(|(time, after)| {
        Finding::fact(format!(
            "It becomes Inactive {}, unless there is activity: inactiveAfter is {after}",
            moment(time, now)
        ))
    });
    let close_unassigned_after = timers.close_unassigned_after.filter(|_| status.unassigned_time.is_some());
    let close = deadlines.close_time.map(|time| {
        let causes = [
            timers.close_after.map(|after| format!("closeAfter is {after} without activity")),
            close_unassigned_after.map(|after| format!("closeUnassignedAfter is {after} without participants")),
        ];
        let causes = causes.into_iter().flatten().collect::<Vec<_>>().join(", and ");
        let ways = [
            timers.close_after.map(|_| "Activity postpones closeAfter"),
            close_unassigned_after.map(|_| "A participant stops closeUnassignedAfter"),
            Some("A timer that is set to never in spec.timers does not run, whatever the defaults are"),
        ];
        let ways = ways.into_iter().flatten();
        Finding::new(format!("It closes {}, which is final: {causes}", moment(time, now)), ways)
    });
    inactive.into_iter().chain(close).collect()
}
