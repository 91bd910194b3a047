//! Measures nanoseconds and allocations of each admission and of each lifecycle decision, without network and API server:
//! `cargo bench -p bench`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a measurement is valid only if every step succeeds")]

use divan::{AllocProfiler, Bencher, black_box};
use serde_json::Value;
use std::time::Duration;
use switchboard::api::{Conversation, ConversationReference, State, Time};
use switchboard::core::binding::Binding;
use switchboard::core::claim::{LiveConversation, Observation, Request, admit};
use switchboard::core::denial::{Denial, Disclosure, already_bound};
use switchboard::core::lifecycle::{BindingStatus, Defaults, LifecycleInput, decide};
use switchboard::webhook::{Review, ReviewKind, respond};

/// A review from an API server: 3 KB, mostly `managedFields`.
const REVIEW: &[u8] = include_bytes!("review.json");
const GRACE_PERIOD: Duration = Duration::from_mins(1);

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn review() -> Review {
    Review::parse(REVIEW).unwrap()
}

fn request() -> Request {
    match review().kind().unwrap() {
        ReviewKind::Claim(request) => request,
        asked => panic!("{asked:?}"),
    }
}

fn conversation() -> Conversation {
    let review: Value = serde_json::from_slice(REVIEW).unwrap();
    serde_json::from_value(review["request"]["object"].clone()).unwrap()
}

fn denial() -> Denial {
    let holder = ConversationReference { namespace: "sales".to_owned(), name: "alice-before".to_owned() };
    let stored = LiveConversation {
        uid: "u".to_owned(),
        needed_binding: Some(request().binding.name()),
        state: State::Active,
        participants: vec!["agent-7".to_owned()],
        manager: None,
    };
    already_bound(&request().binding, &holder, &stored, Disclosure::Full)
}

/// Parses a review and determines its kind.
#[divan::bench]
fn admission_1_parse(bencher: Bencher) {
    bencher.bench(|| Review::parse(black_box(REVIEW)).unwrap().kind().unwrap());
}

/// Computes the name of the claim on a binding.
#[divan::bench]
fn admission_2_name(bencher: Bencher) {
    let conversation = conversation();
    bencher.bench(|| Binding::of(&black_box(&conversation).spec).unwrap().unwrap().name());
}

/// Decides the two steps of a create whose binding is free: the write, and the answer.
#[divan::bench]
fn admission_3_decide(bencher: Bencher) {
    let request = request();
    bencher.bench(|| {
        [Observation::Nothing, Observation::Written]
            .map(|seen| admit(black_box(&request), seen, Time::EPOCH, GRACE_PERIOD))
    });
}

/// Encodes the answer that allows a create.
#[divan::bench]
fn admission_4_allow(bencher: Bencher) {
    let review = review();
    bencher.bench(|| respond(black_box(&review), None).unwrap());
}

/// Encodes the answer that denies a create, with the message and the structured cause.
#[divan::bench]
fn admission_4_deny(bencher: Bencher) {
    let review = review();
    bencher.with_inputs(denial).bench_values(|denial| respond(black_box(&review), Some(denial)).unwrap());
}

/// Extracts the input of the lifecycle from a conversation.
#[divan::bench]
fn lifecycle_1_input(bencher: Bencher) {
    let conversation = conversation();
    bencher.bench(|| LifecycleInput::of(black_box(&conversation)).unwrap());
}

/// Decides the status of a new conversation and its next deadline.
#[divan::bench]
fn lifecycle_2_decide(bencher: Bencher) {
    let input = LifecycleInput::of(&conversation()).unwrap();
    let binding_status = BindingStatus::Held { name: request().binding.name(), since: switchboard::api::Time::EPOCH };
    bencher.bench(|| decide(black_box(&input), &Defaults::default(), Some(&binding_status), Time::EPOCH));
}
