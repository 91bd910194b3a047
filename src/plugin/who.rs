//! `who`: the holder of a binding, and the conversations that wait for it.
//!
//! One GET of the claim by its computed name, one GET of the conversation that it names, and one LIST by field selector.

use super::claim::{Claimed, read_claim};
use super::cluster::{Cluster, Connection, Stored};
use super::error::Error;
use super::list::OPEN;
use super::output::{Format, Styles, json, note, warn, yaml};
use super::text::{Cell, NONE, fields as fields_text, listed, moment};
use crate::api::{
    Channel, ConditionReason, ConditionType, Contact, Conversation, ConversationReference, Deadlines, State, Time,
    TimersInEffect,
};
use crate::clock::Clock;
use crate::core::address::{Address, InvalidAddress, Role};
use crate::core::binding::{Binding, InvalidBinding};
use crate::core::claim::{Claim, LiveConversation};
use crate::core::denial::invalid_binding;
use crate::kube_error::ErrorClass;
use crate::proxy_addresses::escape;
use clap::Args;
use kube::api::ListParams;
use serde::Serialize;
use strum::VariantArray;

/// The conversations that wait, as far as the table names them.
const NAMED: usize = 10;

/// The binding to look up.
#[derive(Args, Debug)]
pub struct Who {
    /// Channel, such as SMS or Email, in any case
    #[arg(value_parser = channel)]
    channel: Channel,
    /// Address of the contact. A spelling such as "+1 (555) 867-5310" is made canonical if it is clear
    contact: String,
    /// Proxy address, in the same spellings
    proxy: String,
    /// Format of the result
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

fn channel(text: &str) -> Result<Channel, String> {
    let is_named = |channel: &&Channel| channel.as_str().eq_ignore_ascii_case(text);
    let names = || Channel::VARIANTS.iter().map(|channel| channel.as_str()).collect::<Vec<_>>().join(", ");
    Channel::VARIANTS.iter().find(is_named).copied().ok_or_else(|| format!("must be one of {}", names()))
}

/// The canonical spelling of an address, and whether it is another one than `text`.
fn spelling(channel: Channel, role: Role, text: &str) -> Result<(String, bool), InvalidAddress> {
    match Address::parse(channel, role, text) {
        Ok(address) => Ok((address.to_string(), false)),
        Err(InvalidAddress { canonical: Some(canonical), .. }) => Ok((canonical, true)),
        Err(error) => Err(error),
    }
}

/// What is known about a binding.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    address_binding: String,
    channel: Channel,
    contact_address: String,
    proxy_address: String,
    status: Status,
    holder: Option<Holder>,
    /// `None` if the user may not list the conversations of all namespaces.
    waiting: Option<Vec<Waiting>>,
}

/// Whether a conversation holds the binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Status {
    /// The holder was read, and it holds the binding.
    Held,
    /// The AddressBinding names a conversation that the user may not read.
    Claimed,
    /// The AddressBinding names a conversation that does not hold it: a create or a release is in progress.
    Undecided,
    /// There is no AddressBinding.
    Free,
}

/// The conversation that the AddressBinding names. Only its place is known if it cannot be read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Holder {
    namespace: String,
    name: String,
    #[serde(flatten)]
    details: Option<Details>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    uid: String,
    state: State,
    participants: Vec<String>,
    managed_by: Option<String>,
    contact: Option<Contact>,
    creation_time: Option<Time>,
    last_activity_time: Option<Time>,
    unassigned_time: Option<Time>,
    timers: TimersInEffect,
    deadlines: Deadlines,
}

/// A conversation that waits for the binding.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Waiting {
    namespace: String,
    name: String,
    creation_time: Option<Time>,
    reason: Option<ConditionReason>,
}

impl Who {
    /// Looks up the holder. Returns whether there is one.
    ///
    /// # Errors
    /// If an address is invalid, or the claim cannot be read.
    pub async fn run(&self, connection: &Connection) -> Result<(String, bool), Error> {
        let binding = self.binding()?;
        let report = Report::read(&connection.connect().await?, &binding).await?;
        let is_held = matches!(report.status, Status::Held | Status::Claimed);
        let text = match self.output {
            Format::Json => json(&report)?,
            Format::Yaml => yaml(&report)?,
            Format::Name if is_held => report.place() + "\n",
            Format::Name => String::new(),
            format => report.text(format == Format::Wide, Styles::of_stdout(), Clock.now()),
        };
        Ok((text, is_held))
    }

    fn binding(&self) -> Result<Binding, Error> {
        let invalid = |error: InvalidBinding| Error::Usage(invalid_binding(&error).message);
        let sides = [(Role::Contact, "contact", &self.contact), (Role::Proxy, "proxy", &self.proxy)];
        let [contact, proxy] = sides.map(|(role, side, text)| {
            let wrap = if role == Role::Contact { InvalidBinding::Contact } else { InvalidBinding::Proxy };
            let (canonical, is_other) = spelling(self.channel, role, text).map_err(|error| invalid(wrap(error)))?;
            if is_other {
                note(&format!("the {side} address {text:?} is looked up by its canonical spelling, {canonical}"));
            }
            Ok::<_, Error>(canonical)
        });
        Binding::parse(self.channel, &contact?, &proxy?).map_err(invalid)
    }
}

impl Report {
    async fn read(cluster: &Cluster, binding: &Binding) -> Result<Self, Error> {
        let claim = read_claim(cluster, binding).await?;
        let (status, holder) = match &claim {
            None => (Status::Free, None),
            Some(claim) => Self::holder(cluster, claim).await?,
        };
        let waiting = Self::waiting(cluster, binding, claim.as_ref()).await?;
        Ok(Self {
            address_binding: binding.name().to_string(),
            channel: binding.channel(),
            contact_address: binding.contact().to_string(),
            proxy_address: binding.proxy().to_string(),
            status,
            holder,
            waiting,
        })
    }

    async fn holder(cluster: &Cluster, claim: &Claim) -> Result<(Status, Option<Holder>), Error> {
        let ConversationReference { namespace, name } = claim.holder.clone();
        let stored = match Claimed::read(cluster, claim).await? {
            Claimed::Unreadable => {
                warn(&format!(
                    "you may not read conversations in the namespace {namespace}, so nothing else is known about {name} there"
                ));
                return Ok((Status::Claimed, Some(Holder { namespace, name, details: None })));
            }
            Claimed::Absent => return Ok((Status::Undecided, Some(Holder { namespace, name, details: None }))),
            Claimed::Stored(stored) => stored,
        };
        let live = LiveConversation::of(&stored.conversation);
        let status = if claim.is_held_by(&live) { Status::Held } else { Status::Undecided };
        let details = Some(Details::of(&stored.conversation, live));
        Ok((status, Some(Holder { namespace, name, details })))
    }

    /// The conversations that wait for the binding, in the order in which they get it.
    async fn waiting(
        cluster: &Cluster,
        binding: &Binding,
        claim: Option<&Claim>,
    ) -> Result<Option<Vec<Waiting>>, Error> {
        let [contact, proxy] = [binding.contact(), binding.proxy()].map(|address| escape(address.as_str()));
        let selector = format!(
            "spec.channel={},spec.contact.address={contact},spec.proxy.address={proxy},{OPEN}",
            binding.channel()
        );
        let list = match cluster.conversations(None).list(&ListParams::default().fields(&selector)).await {
            Err(error) if ErrorClass::of(&error) == ErrorClass::Forbidden => {
                warn(
                    "you may not list the conversations of all namespaces, so it is not known which ones wait for the binding",
                );
                return Ok(None);
            }
            list => list.map_err(Error::request("list the conversations that wait for the binding"))?,
        };
        let name = binding.name();
        let mut waiting = Vec::new();
        for object in list.items {
            let stored = Stored::of(object)?;
            let (place, live) = (stored.place(), LiveConversation::of(&stored.conversation));
            let is_holder = claim.is_some_and(|claim| claim.holder == place && claim.is_held_by(&live));
            if live.needed_binding.as_ref() == Some(&name) && !is_holder {
                let ConversationReference { namespace, name } = place;
                let reason = stored.condition(ConditionType::Bound).map(|condition| condition.reason);
                let creation_time = stored.conversation.metadata.creation_timestamp.as_ref().map(Time::from);
                waiting.push(Waiting { namespace, name, creation_time, reason });
            }
        }
        waiting.sort_by(|a, b| (a.creation_time, &a.namespace, &a.name).cmp(&(b.creation_time, &b.namespace, &b.name)));
        Ok(Some(waiting))
    }

    /// The conversation that the AddressBinding names.
    fn place(&self) -> String {
        self.holder.as_ref().map(|holder| format!("{}/{}", holder.namespace, holder.name)).unwrap_or_default()
    }

    fn text(&self, is_wide: bool, styles: Styles, now: Time) -> String {
        let mut fields: Vec<(&str, Cell)> = Vec::new();
        let place = self.place();
        let holder = match self.status {
            Status::Held | Status::Claimed => Cell::styled(place, styles.choose(Styles::HEADER)),
            Status::Undecided => {
                format!("{NONE}, but {place} is being created, or its binding is being released").into()
            }
            Status::Free => format!("{NONE}, the binding is free").into(),
        };
        fields.push(("Holder", holder));
        if let Some(details) = self.holder.as_ref().and_then(|holder| holder.details.as_ref()) {
            details.add_to(&mut fields, is_wide, styles, now);
        }
        let waiting = self.waiting.as_ref().map_or_else(|| vec!["<unknown>".to_owned()], |waiting| lines(waiting, now));
        let labels = ["Waiting"].into_iter().chain(std::iter::repeat(""));
        fields.extend(labels.zip(waiting.into_iter().map(Cell::from)));
        let Self { channel, contact_address, proxy_address, .. } = self;
        fields.push(("Binding", format!("{channel} {contact_address} {proxy_address}").into()));
        fields.push(("AddressBinding", self.address_binding.clone().into()));
        fields_text(fields)
    }
}

impl Details {
    fn of(conversation: &Conversation, live: LiveConversation) -> Self {
        let status = conversation.status.clone().unwrap_or_default();
        Self {
            uid: live.uid,
            state: live.state,
            participants: live.participants,
            managed_by: live.manager.map(|manager| manager.to_string()),
            contact: conversation.spec.contact.clone(),
            creation_time: conversation.metadata.creation_timestamp.as_ref().map(Time::from),
            last_activity_time: status.last_activity_time,
            unassigned_time: status.unassigned_time,
            timers: status.timers.unwrap_or_default(),
            deadlines: status.deadlines.unwrap_or_default(),
        }
    }

    fn add_to(&self, fields: &mut Vec<(&str, Cell)>, is_wide: bool, styles: Styles, now: Time) {
        let time = |time: Option<Time>| Cell::from(time.map_or_else(|| NONE.to_owned(), |time| moment(time, now)));
        let text = |text: Option<&String>| Cell::from(text.map_or(NONE, String::as_str));
        fields.push(("State", Cell::styled(self.state.as_str(), styles.choose(Styles::of_state(self.state)))));
        fields.push(("Participants", listed(&self.participants).into()));
        if self.unassigned_time.is_some() {
            fields.push(("Unassigned since", time(self.unassigned_time)));
        }
        fields.push(("Managed by", text(self.managed_by.as_ref())));
        fields.push(("Inactive at", time(self.deadlines.inactive_time)));
        fields.push(("Closes at", time(self.deadlines.close_time)));
        if is_wide {
            let contact = self.contact.as_ref().and_then(|contact| contact.display_name.as_ref());
            fields.push(("Contact name", text(contact)));
            fields.push(("Created", time(self.creation_time)));
            fields.push(("Last activity", time(self.last_activity_time)));
            fields.push(("UID", text(Some(&self.uid))));
        }
    }
}

/// The first of the conversations that wait, each in a line.
fn lines(waiting: &[Waiting], now: Time) -> Vec<String> {
    let line = |waiting: &Waiting| {
        let Waiting { namespace, name, creation_time, .. } = waiting;
        let created = creation_time.map(|time| format!(", created {}", moment(time, now))).unwrap_or_default();
        format!("{namespace}/{name}{created}")
    };
    let more = waiting.len().saturating_sub(NAMED);
    let more = (more > 0).then(|| format!("and {more} more"));
    match waiting {
        [] => vec![NONE.to_owned()],
        waiting => waiting.iter().take(NAMED).map(line).chain(more).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    /// A report without a holder that was read.
    fn report(status: Status, waiting: usize) -> Report {
        let waiting = (1..=waiting).map(|number| Waiting {
            namespace: "sales".to_owned(),
            name: format!("bob-{number}"),
            creation_time: None,
            reason: None,
        });
        let holder = Holder { namespace: "sales".to_owned(), name: "alice".to_owned(), details: None };
        Report {
            address_binding: "chat-1".to_owned(),
            channel: Channel::Chat,
            contact_address: "alice".to_owned(),
            proxy_address: "desk".to_owned(),
            status,
            holder: Some(holder).filter(|_| status != Status::Free),
            waiting: Some(waiting.collect()),
        }
    }

    fn text(report: &Report) -> String {
        report.text(false, Styles::of(false, None::<OsString>, None), Time::EPOCH)
    }

    #[test]
    fn claim_without_a_holder_is_undecided() {
        let expected = "Holder:           <none>, but sales/alice is being created, or its binding is being released\n\
                        Waiting:          <none>\n\
                        Binding:          Chat alice desk\n\
                        AddressBinding:   chat-1\n";
        assert_eq!(text(&report(Status::Undecided, 0)), expected);
    }

    #[test]
    fn conversations_that_wait_are_counted_beyond_ten() {
        let shown = text(&report(Status::Claimed, 12));
        assert!(shown.contains("Waiting:          sales/bob-1\n                  sales/bob-2\n"), "{shown}");
        assert!(shown.contains("sales/bob-10\n                  and 2 more\n"), "{shown}");
    }
}
