//! Nanoseconds and allocations of what each admission and each look at a conversation costs, network and API server left out:
//! `cargo bench -p bench`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what is measured here succeeds, or the measurement means nothing"
)]

use divan::{AllocProfiler, Bencher, black_box};
use serde_json::Value;
use std::time::Duration;
use switchboard::api::{Conversation, ConversationReference, State, Time};
use switchboard::core::binding::Binding;
use switchboard::core::claim::{LiveConversation, Observation, Request, admit};
use switchboard::core::denial::{Denial, Disclosure, already_bound};
use switchboard::core::lifecycle::{BindingStatus, LifecycleInput, decide};
use switchboard::webhook::{Review, ReviewKind, respond};

/// As an API server sends it: 3 KB, of which the bookkeeping of fields is the larger part.
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

fn refusal() -> Denial {
    let holder = ConversationReference { namespace: "sales".to_owned(), name: "alice-before".to_owned() };
    let stored = LiveConversation {
        uid: "u".to_owned(),
        held_binding: Some(request().binding.name()),
        state: State::Active,
        participants: vec!["agent-7".to_owned()],
    };
    already_bound(&request().binding, &holder, &stored, &Disclosure::Full(None))
}

/// Reads a review and finds what it asks for.
#[divan::bench]
fn admission_1_parse(bencher: Bencher) {
    bencher.bench(|| Review::parse(black_box(REVIEW)).unwrap().kind().unwrap());
}

/// The name of the claim on a binding.
#[divan::bench]
fn admission_2_name(bencher: Bencher) {
    let conversation = conversation();
    bencher.bench(|| Binding::of(&black_box(&conversation).spec).unwrap().unwrap().name());
}

/// The steps of a create whose binding is free: the write, and the answer.
#[divan::bench]
fn admission_3_decide(bencher: Bencher) {
    let request = request();
    bencher.bench(|| {
        [Observation::Nothing, Observation::Written]
            .map(|seen| admit(black_box(&request), seen, Time::EPOCH, GRACE_PERIOD))
    });
}

/// The bytes that allow a create.
#[divan::bench]
fn admission_4_allow(bencher: Bencher) {
    let review = review();
    bencher.bench(|| respond(black_box(&review), None).unwrap());
}

/// The bytes that refuse one, with the message and the structured cause.
#[divan::bench]
fn admission_4_refuse(bencher: Bencher) {
    let review = review();
    bencher.with_inputs(refusal).bench_values(|refusal| respond(black_box(&review), Some(refusal)).unwrap());
}

/// What the lifecycle needs of a conversation that a watch has shown.
#[divan::bench]
fn lifecycle_1_facts(bencher: Bencher) {
    let conversation = conversation();
    bencher.bench(|| LifecycleInput::of(black_box(&conversation)).unwrap());
}

/// The status of a new conversation, and when it will change by itself.
#[divan::bench]
fn lifecycle_2_decide(bencher: Bencher) {
    let input = LifecycleInput::of(&conversation()).unwrap();
    let holding = BindingStatus::Held(request().binding.name());
    bencher.bench(|| decide(black_box(&input), Some(&holding), Time::EPOCH));
}
