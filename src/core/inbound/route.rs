//! The way of one message to its conversation, as a step machine: it is told what was observed, and says what to do next.
//!
//! A message never creates a second conversation for a binding, because its create claims the binding as every create does. It creates at
//! most one conversation, however often it is sent, because the conversation's name is derived from the message. And it does not overtake a
//! conversation that is seen to wait for the binding.

use super::Unroutable;
use crate::api::{ConversationReference, State};

/// An open conversation that holds the binding of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recipient {
    /// Its namespace and name.
    pub conversation: ConversationReference,
    /// Its UID.
    pub uid: String,
    /// The state in effect.
    pub state: State,
    /// The identities of its participants.
    pub participants: Vec<String>,
}

/// Who has a binding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BindingStatus {
    /// An open conversation holds it.
    Held(Recipient),
    /// Nobody holds it, and an open conversation waits for it.
    Awaited,
    /// Nobody holds it, and nobody waits for it.
    Free,
    /// This could not be found out.
    Unknown,
}

/// How to find out whether a conversation waits for a binding that nobody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitingSource {
    /// From the watches, if they show that nobody holds it either, or else by a list.
    Watches,
    /// From the watches, if they show a conversation that waits, or else by a list. They may not show yet one that a list has shown.
    FreeByList,
    /// By a list. The watches may not show yet that a conversation is closed.
    List,
}

/// The outcome of a report of activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    /// It is stored, or need not be.
    Done,
    /// The conversation is closed, or is another object by now.
    Gone,
}

/// The outcome of the create of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Creation {
    /// It is created.
    Created(Recipient),
    /// Another conversation holds the binding (48031).
    AlreadyBound,
    /// A conversation of this name exists.
    AlreadyExists,
    /// No more may be created for now.
    RateLimited,
    /// It is refused, and a retry would be refused too.
    Refused,
    /// The outcome is unknown, or a retry may succeed.
    Undecided,
}

/// The stored conversation that has the name of the one that the message would create.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OwnConversation {
    /// It is open, and needs the binding of the message.
    Open(Recipient),
    /// It is closed, or is being deleted, or is gone.
    Closed,
    /// It is open, and does not need the binding of the message.
    Other,
    /// It could not be read.
    Unknown,
}

/// What was observed since the last step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RouteObservation {
    /// The watches show this.
    Watched(BindingStatus),
    /// Live reads show this.
    Live(BindingStatus),
    /// The recipient's activity was reported.
    Reported(Recipient, Report),
    /// A conversation was to be created.
    Creation(Creation),
    /// The conversation of the message's own name was read live.
    Own(OwnConversation),
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RouteStep {
    /// Find out live who has the binding.
    ReadLive(WaitingSource),
    /// The same, after a pause: it could not be found out.
    ReadLiveAgain(WaitingSource),
    /// The same, after a pause, but not for long: a hand-over of the binding is in progress. Only a list tells that nobody waits any more, and
    /// the last look is by a list alone.
    AwaitHandOver,
    /// Report the activity of the recipient, where that is due.
    Report(Recipient),
    /// Create the conversation of the message's own name.
    Create,
    /// The same, after a pause.
    CreateAgain,
    /// Read the conversation of the message's own name live.
    ReadOwn,
    /// The same, after a pause: it could not be read.
    ReadOwnAgain,
    /// Deliver the message.
    Deliver {
        /// To this conversation.
        recipient: Recipient,
        /// Whether the message created it.
        is_created: bool,
    },
    /// No conversation gets the message.
    Unroutable(Unroutable),
}

/// The way of one message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Routing {
    /// The conversation that the message may create, or has created before.
    own: Option<ConversationReference>,
    /// Why the message creates no conversation.
    obstacle: Option<Unroutable>,
    waiting: WaitingSource,
}

impl Routing {
    /// The way of a message that has not been looked at. `own` is the conversation that it may create.
    #[must_use]
    pub fn new(own: Option<ConversationReference>) -> Self {
        let obstacle = own.is_none().then_some(Unroutable::NoConversation);
        Self { own, obstacle, waiting: WaitingSource::Watches }
    }

    /// The step that follows from `observation`. The last one is `Deliver` or `Unroutable`, unless the time is over before.
    pub fn next(&mut self, observation: RouteObservation) -> RouteStep {
        match observation {
            RouteObservation::Watched(BindingStatus::Held(recipient))
            | RouteObservation::Live(BindingStatus::Held(recipient)) => RouteStep::Report(recipient),
            // The watches may be late. Most messages that find nobody open a conversation, and its create finds out.
            RouteObservation::Watched(BindingStatus::Free) if self.obstacle.is_none() => RouteStep::Create,
            RouteObservation::Watched(_) | RouteObservation::Reported(_, Report::Gone) => {
                RouteStep::ReadLive(self.waiting)
            }
            // If the waiting conversation were overtaken, it would wait for the one that the message creates.
            RouteObservation::Live(BindingStatus::Awaited) => {
                self.waiting = WaitingSource::FreeByList;
                RouteStep::AwaitHandOver
            }
            RouteObservation::Live(BindingStatus::Free) => {
                self.obstacle.map_or(RouteStep::Create, RouteStep::Unroutable)
            }
            RouteObservation::Live(BindingStatus::Unknown) => RouteStep::ReadLiveAgain(self.waiting),
            RouteObservation::Own(OwnConversation::Unknown) => RouteStep::ReadOwnAgain,
            RouteObservation::Reported(recipient, Report::Done)
            | RouteObservation::Own(OwnConversation::Open(recipient)) => self.deliver(recipient),
            RouteObservation::Creation(creation) => match creation {
                Creation::Created(recipient) => self.deliver(recipient),
                Creation::AlreadyBound => RouteStep::ReadLive(self.waiting),
                Creation::AlreadyExists => RouteStep::ReadOwn,
                Creation::RateLimited => self.create_no_more(Unroutable::RateLimited),
                // The watches may be late: the binding may be held all the same.
                Creation::Refused => self.create_no_more(Unroutable::NotAdmitted),
                Creation::Undecided => RouteStep::CreateAgain,
            },
            RouteObservation::Own(OwnConversation::Closed) => self.create_no_more(Unroutable::ConversationClosed),
            RouteObservation::Own(OwnConversation::Other) => self.create_no_more(Unroutable::NameTaken),
        }
    }

    /// If the message was sent before, it may have created its recipient then, and nobody may have been told.
    fn deliver(&self, recipient: Recipient) -> RouteStep {
        let is_created = self.own.as_ref() == Some(&recipient.conversation);
        RouteStep::Deliver { recipient, is_created }
    }

    /// The message goes to whoever holds the binding now, if anybody does.
    fn create_no_more(&mut self, why: Unroutable) -> RouteStep {
        self.obstacle = Some(why);
        RouteStep::ReadLive(self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RouteObservation::{Creation as Tried, Live, Own as Read, Reported, Watched};

    /// The first live read.
    const READ: RouteStep = RouteStep::ReadLive(WaitingSource::Watches);

    fn recipient(name: &str) -> Recipient {
        let conversation = ConversationReference { namespace: "sales".to_owned(), name: name.to_owned() };
        Recipient { conversation, uid: format!("uid-{name}"), state: State::Active, participants: Vec::new() }
    }

    /// The steps of a message that observes these things one after the other.
    fn steps(creates: bool, observations: &[RouteObservation]) -> Vec<RouteStep> {
        let mut routing = Routing::new(creates.then(|| recipient("in").conversation));
        observations.iter().cloned().map(|observation| routing.next(observation)).collect()
    }

    fn last(creates: bool, observations: &[RouteObservation]) -> RouteStep {
        steps(creates, observations).pop().unwrap()
    }

    fn delivered(name: &str, is_created: bool) -> RouteStep {
        RouteStep::Deliver { recipient: recipient(name), is_created }
    }

    #[test]
    fn held_binding_leads_to_its_holder() {
        for first in [Watched(BindingStatus::Held(recipient("alice"))), Live(BindingStatus::Held(recipient("alice")))] {
            for creates in [true, false] {
                let taken = steps(creates, &[first.clone(), Reported(recipient("alice"), Report::Done)]);
                assert_eq!(taken, [RouteStep::Report(recipient("alice")), delivered("alice", false)]);
            }
        }
    }

    #[test]
    fn free_binding_is_read_live_unless_the_create_finds_out() {
        assert_eq!(last(true, &[Watched(BindingStatus::Free)]), RouteStep::Create);
        assert_eq!(last(false, &[Watched(BindingStatus::Free)]), READ);
        let unroutable = RouteStep::Unroutable(Unroutable::NoConversation);
        assert_eq!(last(false, &[Watched(BindingStatus::Free), Live(BindingStatus::Free)]), unroutable);
        assert_eq!(last(true, &[Watched(BindingStatus::Unknown), Live(BindingStatus::Free)]), RouteStep::Create);
        assert_eq!(
            last(true, &[Watched(BindingStatus::Unknown), Live(BindingStatus::Unknown)]),
            RouteStep::ReadLiveAgain(WaitingSource::Watches)
        );
    }

    #[test]
    fn awaited_binding_is_never_overtaken() {
        let taken = steps(
            true,
            &[
                Watched(BindingStatus::Awaited),
                Live(BindingStatus::Awaited),
                Live(BindingStatus::Held(recipient("next"))),
            ],
        );
        assert_eq!(taken, [READ, RouteStep::AwaitHandOver, RouteStep::Report(recipient("next"))]);
    }

    #[test]
    fn binding_that_was_awaited_is_free_only_by_a_list() {
        let awaited = [Watched(BindingStatus::Unknown), Live(BindingStatus::Awaited)];
        let then = |more: &[RouteObservation]| last(true, &[&awaited, more].concat());
        let unknown = then(&[Live(BindingStatus::Unknown)]);
        assert_eq!(unknown, RouteStep::ReadLiveAgain(WaitingSource::FreeByList));
        let gone = [Live(BindingStatus::Held(recipient("next"))), Reported(recipient("next"), Report::Gone)];
        assert_eq!(then(&gone), RouteStep::ReadLive(WaitingSource::FreeByList));
        assert_eq!(then(&[Live(BindingStatus::Free)]), RouteStep::Create);
    }

    #[test]
    fn closed_recipient_is_replaced_by_the_present_holder_or_a_new_one() {
        let gone = [Watched(BindingStatus::Held(recipient("alice"))), Reported(recipient("alice"), Report::Gone)];
        let then = |next| last(true, &[gone.to_vec(), vec![next]].concat());
        assert_eq!(steps(true, &gone)[1], READ);
        assert_eq!(then(Live(BindingStatus::Held(recipient("bob")))), RouteStep::Report(recipient("bob")));
        assert_eq!(then(Live(BindingStatus::Free)), RouteStep::Create);
    }

    #[test]
    fn loser_of_a_race_goes_to_the_winner_or_creates_again() {
        let lost = [Watched(BindingStatus::Free), Tried(Creation::AlreadyBound)];
        let then = |next| last(true, &[lost.to_vec(), vec![next]].concat());
        assert_eq!(then(Live(BindingStatus::Held(recipient("winner")))), RouteStep::Report(recipient("winner")));
        assert_eq!(then(Live(BindingStatus::Free)), RouteStep::Create);
        assert_eq!(last(true, &[Tried(Creation::Created(recipient("in")))]), delivered("in", true));
        assert_eq!(last(true, &[Tried(Creation::Undecided)]), RouteStep::CreateAgain);
    }

    #[test]
    fn repeated_opening_message_never_creates_a_second_conversation() {
        let repeated = [Watched(BindingStatus::Free), Tried(Creation::AlreadyExists)];
        let then = |more: &[RouteObservation]| last(true, &[&repeated, more].concat());
        assert_eq!(then(&[]), RouteStep::ReadOwn);
        assert_eq!(then(&[Read(OwnConversation::Open(recipient("in")))]), delivered("in", true));
        for (own, why) in
            [(OwnConversation::Closed, Unroutable::ConversationClosed), (OwnConversation::Other, Unroutable::NameTaken)]
        {
            assert_eq!(then(&[Read(own.clone())]), READ);
            assert_eq!(then(&[Read(own.clone()), Live(BindingStatus::Free)]), RouteStep::Unroutable(why));
            let held = Live(BindingStatus::Held(recipient("bob")));
            assert_eq!(then(&[Read(own.clone()), held]), RouteStep::Report(recipient("bob")));
            let closed_meanwhile = [Read(own), Reported(recipient("bob"), Report::Gone), Live(BindingStatus::Free)];
            assert_eq!(then(&closed_meanwhile), RouteStep::Unroutable(why));
        }
        assert_eq!(then(&[Read(OwnConversation::Unknown)]), RouteStep::ReadOwnAgain);
    }

    #[test]
    fn opening_message_that_is_sent_again_has_created_its_recipient() {
        for first in [Watched(BindingStatus::Held(recipient("in"))), Live(BindingStatus::Held(recipient("in")))] {
            assert_eq!(last(true, &[first, Reported(recipient("in"), Report::Done)]), delivered("in", true));
        }
    }

    #[test]
    fn create_that_fails_for_good_is_told_only_after_a_live_read() {
        for (failed, why) in
            [(Creation::RateLimited, Unroutable::RateLimited), (Creation::Refused, Unroutable::NotAdmitted)]
        {
            let failed = [Watched(BindingStatus::Free), Tried(failed)];
            let then = |next| last(true, &[failed.to_vec(), vec![next]].concat());
            assert_eq!(last(true, &failed), READ);
            assert_eq!(then(Live(BindingStatus::Free)), RouteStep::Unroutable(why));
            assert_eq!(then(Live(BindingStatus::Held(recipient("alice")))), RouteStep::Report(recipient("alice")));
        }
    }
}
