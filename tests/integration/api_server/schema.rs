//! How a real API server admits, refuses and displays every kind, with the policies that warn, and without webhook and controller.
//! Tier: API server.

use crate::common;
use crate::testdata;
use crate::testdata::{Manifest, Verb};
use futures::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper::http::{Method, Request};
use kube::ResourceExt;
use kube::api::ListParams;
use kube::client::Body;
use serde_json::{Value, json};

/// The number of concurrent requests or manifests in one test.
const CONCURRENCY: usize = 8;

/// A namespace for one test, with a client.
struct SchemaNamespace {
    client: kube::Client,
    namespace: String,
}

/// The API server's answer to a request that it does not admit.
#[derive(Debug)]
struct Refusal {
    code: u16,
    message: String,
    /// The complaints, each with its field. Empty if the API server could not decode the request.
    complaints: Vec<String>,
}

impl Refusal {
    fn read(code: u16, status: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let complaints = status["details"]["causes"].as_array().into_iter().flatten();
        let complaints = complaints
            .filter(|cause| !text(&cause["message"]).contains("some validation rules were not checked"))
            .map(|cause| format!("{}: {}", text(&cause["field"]), text(&cause["message"])));
        Self { code, message: text(&status["message"]), complaints: complaints.collect() }
    }

    /// Describes how this refusal differs from the expected one. It must contain all expected complaints and no others.
    fn differs_from(&self, expected: &[String]) -> Option<String> {
        let missing = expected.iter().find(|expected| !matches_wording(&self.message, expected));
        let unexpected = self
            .complaints
            .iter()
            .find(|complaint| !expected.iter().any(|expected| matches_wording(complaint, expected)));
        let differs = match (missing, unexpected) {
            (Some(missing), _) => Some(format!("lacks {missing:?}")),
            (_, Some(unexpected)) => Some(format!("has {unexpected:?} as well")),
            _ => self.is_unfit().map(str::to_owned),
        };
        differs.map(|differs| format!("{differs}: {} {}", self.code, self.message))
    }

    /// Describes why a refusal must not look like this one.
    fn is_unfit(&self) -> Option<&'static str> {
        // The API server reports a merge that it cannot perform as its own error.
        if !(400..500).contains(&self.code) && !self.message.starts_with("failed to create typed patch object") {
            Some("is not a refusal")
        } else if self.code == 409 {
            Some("makes clients retry")
        } else if self.message.contains("is invalid: <nil>") || self.message.contains("is invalid: [<nil>") {
            Some("does not name the field")
        } else if self.message.contains("evaluating rule") {
            Some("has a rule that fails to evaluate")
        } else if self.message.contains("is immutable") {
            Some("makes Flux delete the object")
        } else {
            None
        }
    }
}

/// Whether `text` contains `expected`, in the wording of the current API server or of an older one. Only the API server's own words may
/// differ. The messages of the rules must be equal.
fn matches_wording(text: &str, expected: &str) -> bool {
    let (text, expected) = (current_wording(text), current_wording(expected));
    // For a string that a rule refuses, an older API server shows the type instead of the value.
    let of_type = expected.split_once("Invalid value: \"").and_then(|(field, value)| {
        let (_, message) = value.split_once("\": ")?;
        Some(format!("{field}Invalid value: \"string\": {message}"))
    });
    text.contains(&expected) || of_type.is_some_and(|expected| text.contains(&expected))
}

/// Converts the wording of an older API server to that of the current one.
fn current_wording(text: &str) -> String {
    // Older servers show the type of a value that the current one omits, and a map in Go's syntax.
    let text = ["object", "array"].iter().fold(text.to_owned(), |text, of_type| {
        text.replace(&format!("Invalid value: \"{of_type}\": "), "Invalid value: ")
    });
    let text = text.replace("Duplicate value: map[string]interface {}", "Duplicate value: ");
    // 1.31 words the bound differently, without the unit.
    let mut parts = text.split("may not be longer than ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let rest = part.trim_start_matches(|character: char| character.is_ascii_digit());
        let length = &part[..part.len() - rest.len()];
        format!("{text}may not be more than {length} bytes{rest}")
    })
}

/// The text of a `Warning` header of the API server: `299 - "text"`.
fn warning(header: &str) -> String {
    let text = header.strip_prefix("299 - \"").and_then(|text| text.strip_suffix('"'));
    text.unwrap_or_else(|| panic!("no warning: {header}")).replace("\\\"", "\"")
}

#[test]
fn older_wordings_match_the_current_ones() {
    for (older, current) in [
        (r#"spec: Invalid value: "object": 48027: differ"#, "spec: Invalid value: 48027: differ"),
        (r#"spec.participants: Invalid value: "array": 50433: once"#, "spec.participants: Invalid value: 50433: once"),
        (r#"spec.ttl: Invalid value: "string": must be"#, r#"spec.ttl: Invalid value: "1d": must be"#),
        (
            r#"[1]: Duplicate value: map[string]interface {}{"type":"Ready"}"#,
            r#"[1]: Duplicate value: {"type":"Ready"}"#,
        ),
        ("[a: Too long: may not be longer than 256, b: …]", "a: Too long: may not be more than 256 "),
    ] {
        assert!(matches_wording(current, current) && matches_wording(older, current), "{older}");
    }
}

#[test]
fn other_messages_fields_and_bounds_do_not_match() {
    for (text, expected) in [
        (r#"spec: Invalid value: "object": 48027: equal"#, "spec: Invalid value: 48027: differ"),
        (r#"spec.ttl: Invalid value: "string": must be"#, r#"spec.timers: Invalid value: "1d": must be"#),
        (r#"spec.ttl: Invalid value: "2d": must be"#, r#"spec.ttl: Invalid value: "1d": must be"#),
        (r#"spec.ttl: Invalid value: "string": must lie"#, r#"spec.ttl: Invalid value: "1d": must be"#),
        (
            r#"[1]: Duplicate value: map[string]interface {}{"type":"Bound"}"#,
            r#"[1]: Duplicate value: {"type":"Ready"}"#,
        ),
        ("a: Too long: may not be longer than 2560", "a: Too long: may not be more than 256 "),
    ] {
        assert!(!matches_wording(text, expected), "{text}");
    }
}

impl SchemaNamespace {
    async fn new() -> Self {
        let client = common::client().await;
        let ns = Self { client, namespace: String::new() };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "schema-"}});
        let namespace = ns.request(Method::POST, "/api/v1/namespaces", "application/json", &namespace).await.unwrap();
        Self { namespace: namespace["metadata"]["name"].as_str().unwrap().to_owned(), ..ns }
    }

    async fn request(&self, method: Method, uri: &str, media_type: &str, body: &Value) -> Result<Value, Refusal> {
        self.exchange(method, uri, media_type, body).await.0
    }

    /// As [`Place::request`], with the warnings that come with the answer.
    async fn exchange(
        &self,
        method: Method,
        uri: &str,
        media_type: &str,
        body: &Value,
    ) -> (Result<Value, Refusal>, Vec<String>) {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(uri).header("Content-Type", media_type);
        let response = self.client.send(request.body(Body::from(body)).unwrap()).await.unwrap();
        let status = response.status();
        let warnings = response.headers().get_all("Warning").iter().map(|value| warning(value.to_str().unwrap()));
        let warnings = warnings.collect();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        (if status.is_success() { Ok(answer) } else { Err(Refusal::read(status.as_u16(), &answer)) }, warnings)
    }

    fn collection(&self, object: &Value) -> String {
        let api = format!("/apis/{}", object["apiVersion"].as_str().unwrap());
        match object["kind"].as_str().unwrap() {
            "Conversation" => format!("{api}/namespaces/{}/conversations", self.namespace),
            "AddressBinding" => format!("{api}/addressbindings"),
            "ProxyAddress" => format!("{api}/proxyaddresses"),
            kind => panic!("unknown kind {kind}"),
        }
    }

    fn item(&self, object: &Value) -> String {
        format!("{}/{}", self.collection(object), object["metadata"]["name"].as_str().unwrap())
    }

    async fn get(&self, object: &Value) -> Result<Value, Refusal> {
        self.request(Method::GET, &self.item(object), "application/json", &Value::Null).await
    }

    /// Writes `object` with the request `by`, with strict field validation.
    async fn write(&self, by: Verb, object: &Value) -> Result<Value, Refusal> {
        self.write_with(by, object, "").await.0
    }

    /// As [`SchemaNamespace::write`], as a dry run.
    async fn would_write(&self, by: Verb, object: &Value) -> Result<Value, Refusal> {
        self.write_with(by, object, "&dryRun=All").await.0
    }

    /// Writes `object`, with more options, and returns the warnings too.
    async fn write_with(&self, by: Verb, object: &Value, options: &str) -> (Result<Value, Refusal>, Vec<String>) {
        let options = format!("?fieldManager=tests&fieldValidation=Strict{options}");
        let item = self.item(object);
        let (method, path, media_type) = match by {
            Verb::Create => (Method::POST, self.collection(object), "application/json"),
            Verb::Replace => (Method::PUT, item, "application/json"),
            Verb::ReplaceStatus => (Method::PUT, format!("{item}/status"), "application/json"),
            Verb::Apply => (Method::PATCH, item, "application/apply-patch+yaml"),
            Verb::ApplyStatus => (Method::PATCH, format!("{item}/status"), "application/apply-patch+yaml"),
            Verb::MergePatch => (Method::PATCH, item, "application/merge-patch+json"),
            Verb::MergePatchStatus => (Method::PATCH, format!("{item}/status"), "application/merge-patch+json"),
        };
        let mut object = object.clone();
        if method == Method::PUT {
            let stored = self.get(&object).await;
            object["metadata"]["resourceVersion"] = match stored {
                Ok(mut stored) => stored["metadata"]["resourceVersion"].take(),
                refused => return (refused, Vec::new()),
            };
        }
        self.exchange(method, &format!("{path}{options}"), media_type, &object).await
    }

    fn kubectl(&self, arguments: &[&str]) -> std::process::Command {
        let mut kubectl = common::shared_control_plane().kubectl();
        kubectl.args(arguments).args(["--namespace", &self.namespace]);
        kubectl
    }

    /// Writes all documents of `manifest` except the last `omitted` ones. Each must be admitted, and stored unchanged.
    async fn write_all_but(&self, omitted: usize, manifest: &Manifest) -> Result<(), String> {
        for (index, document) in manifest.documents[..manifest.documents.len() - omitted].iter().enumerate() {
            let (written, warnings) = self.write_with(document.by, &document.object, "").await;
            let written = written.map_err(|refusal| format!("document {index} is refused: {}", refusal.message))?;
            if warnings.len() != document.warned.len()
                || warnings.iter().zip(&document.warned).any(|(warning, quoted)| !warning.contains(quoted))
            {
                return Err(format!("document {index} comes with the warnings {warnings:?}"));
            }
            let [stored, expected] =
                [&written, &document.object].map(|object| testdata::without_nulls(&object["spec"]));
            if document.by.is_whole() && stored != expected {
                return Err(format!("document {index} is stored as {}", written["spec"]));
            }
        }
        Ok(())
    }

    async fn verify(&self, manifest: &Manifest) -> Result<(), String> {
        if manifest.refused.is_empty() {
            return self.write_all_but(0, manifest).await;
        }
        self.write_all_but(1, manifest).await?;
        let last = manifest.documents.last().unwrap();
        match self.write(last.by, &last.object).await {
            Ok(_) => Err("the last document is admitted".to_owned()),
            Err(refusal) => refusal.differs_from(&manifest.refused).map_or(Ok(()), Err),
        }
    }
}

/// Verifies each manifest in its own namespace, and reports all failures.
async fn verify_all(manifests: Vec<Manifest>) {
    let outcomes = stream::iter(manifests).map(async |manifest| {
        let outcome = SchemaNamespace::new().await.verify(&manifest).await;
        outcome.err().map(|error| format!("{}: {error}", manifest.file))
    });
    let failures: Vec<String> =
        outcomes.buffer_unordered(CONCURRENCY).filter_map(async |failure| failure).collect().await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn admitted_manifests_are_stored_unchanged() {
    verify_all(testdata::manifests("admitted")).await;
}

#[tokio::test]
async fn refused_manifests_are_refused_with_exactly_their_complaints() {
    verify_all(testdata::manifests("refused")).await;
}

#[tokio::test]
async fn examples_are_admitted_and_stored_unchanged() {
    verify_all(testdata::examples::conversations()).await;
}

/// Checks all cases of a table, and reports all failures.
async fn check_all<T>(cases: Vec<T>, check: impl AsyncFn(T) -> Option<String>) {
    let answers = stream::iter(cases).map(|case| check(case)).buffer_unordered(CONCURRENCY);
    let failures: Vec<String> = answers.filter_map(async |failure| failure).collect().await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Describes how `answer` differs from the expected one: a refusal with exactly the complaints `refused`, or an admission if it is
/// `None`.
fn differs(answer: Result<Value, Refusal>, refused: Option<&[String]>) -> Option<String> {
    match (answer, refused) {
        (Ok(_), None) => None,
        (Ok(_), Some(_)) => Some("is admitted".to_owned()),
        (Err(refusal), None) => Some(format!("is refused: {}", refusal.message)),
        (Err(refusal), Some(expected)) => refusal.differs_from(expected),
    }
}

fn conversation(name: &str) -> Value {
    json!({
        "apiVersion": "switchboard.dev/v1alpha1",
        "kind": "Conversation",
        "metadata": {"name": name},
        "spec": {"channel": "Chat", "contact": {"address": "alice"}, "proxy": {"address": "desk"}},
    })
}

fn address_binding(name: &str) -> Value {
    json!({
        "apiVersion": "switchboard.dev/v1alpha1",
        "kind": "AddressBinding",
        "metadata": {"name": name},
        "spec": {
            "channel": "Chat",
            "contactAddress": "alice",
            "proxyAddress": "desk",
            "conversationRef": {"namespace": "sales", "name": "alice"},
        },
    })
}

/// `object` with `value` at a path such as `/spec/participants/0`.
fn with(mut object: Value, path: &str, value: Value) -> Value {
    let mut field = &mut object;
    for step in path.split('/').skip(1) {
        field = &mut field[step];
    }
    *field = value;
    object
}

#[tokio::test]
async fn addresses_are_admitted_only_in_canonical_form() {
    let ns = SchemaNamespace::new().await;
    check_all(testdata::addresses(), async |case| {
        let spec = case.spec();
        let testdata::AddressCase { channel, role, address, refused, write } = case;
        let code = if role == "contact" { "48025" } else { "48026" };
        let answer = ns.would_write(Verb::Create, &with(conversation("alice"), "/spec", spec)).await;
        let shown = match &answer {
            Err(refusal) => refusal.message.split_once("; write ").map(|(_, canonical)| canonical.to_owned()),
            Ok(_) => None,
        };
        let error = testdata::parse_address(&channel, role, &address).err();
        let expected = refused.map(|words| {
            let error = error.as_ref().map(ToString::to_string).unwrap_or_default();
            [format!("spec.{role}.address: Invalid value: {code}: the {role} address {error}"), words]
        });
        // The parser has the same words, to the last.
        let other_words = answer.as_ref().err().zip(expected.as_ref()).and_then(|(refusal, [expected, _])| {
            let words = refusal.complaints.iter().map(|complaint| current_wording(complaint)).collect::<Vec<_>>();
            (words != [expected.as_str()]).then(|| format!("is refused with {words:?} instead of {expected:?}"))
        });
        let difference = differs(answer, expected.as_ref().map(<[String; 2]>::as_slice)).or(other_words);
        let difference = difference.or_else(|| (shown != write).then(|| format!("proposes {shown:?}")));
        difference.map(|difference| format!("{role} {address:?} on {channel} {difference}"))
    })
    .await;
}

#[tokio::test]
async fn durations_are_admitted_only_in_format_and_bounds() {
    let ns = SchemaNamespace::new().await;
    let fields = ["timers/inactiveAfter", "timers/closeAfter", "timers/closeUnassignedAfter", "ttlAfterClosed"];
    let cases = testdata::durations().into_iter().flat_map(|case| {
        fields.map(|field| (field, case.duration.clone(), case.meaning.clone().err().map(|words| vec![words])))
    });
    check_all(cases.collect(), async |(field, duration, refused)| {
        let object = with(conversation("alice"), &format!("/spec/{field}"), json!(duration));
        let answer = ns.would_write(Verb::Create, &object).await;
        differs(answer, refused.as_deref()).map(|difference| format!("{field} {duration:?} {difference}"))
    })
    .await;
}

#[tokio::test]
async fn instants_are_admitted_only_if_unambiguous() {
    let ns = SchemaNamespace::new().await;
    ns.write(Verb::Create, &conversation("alice")).await.unwrap();
    // The message about the field that gateways write is ours; the other fields are the operator's.
    check_all(testdata::instants(), async |(instant, refused)| {
        let mut failures = Vec::new();
        let explained =
            ["status.reportedActivityTime: Invalid value", "must be a time in the format of RFC 3339, with seconds"];
        let explained = refused.as_ref().map(|_| explained.map(str::to_owned).to_vec());
        for (field, refused) in [("reportedActivityTime", explained), ("lastActivityTime", refused)] {
            let patch = with(conversation("alice"), &format!("/status/{field}"), json!(instant));
            let answer = ns.would_write(Verb::MergePatchStatus, &patch).await;
            failures.extend(
                differs(answer, refused.as_deref()).map(|difference| format!("{field} {instant:?} {difference}")),
            );
        }
        failures.pop()
    })
    .await;
}

#[tokio::test]
async fn ttl_is_warned_of_beside_the_mark_of_a_tool() {
    let ns = SchemaNamespace::new().await;
    check_all(testdata::managers(), async |(metadata, manager)| {
        let object = with(with(conversation("alice"), "/metadata", metadata), "/metadata/name", json!("alice"));
        let with_ttl = with(object.clone(), "/spec/ttlAfterClosed", json!("1h"));
        let (with_ttl, warnings) = ns.write_with(Verb::Create, &with_ttl, "&dryRun=All").await;
        let (without_ttl, none) = ns.write_with(Verb::Create, &object, "&dryRun=All").await;
        let is_warned = matches!(&warnings[..], [warning] if warning.contains("spec.ttlAfterClosed should not be set"));
        let is_right = if manager.is_some() { is_warned } else { warnings.is_empty() };
        let is_right = is_right && none.is_empty() && with_ttl.is_ok() && without_ttl.is_ok();
        (!is_right).then(|| format!("{}: {warnings:?} and {none:?}", object["metadata"]))
    })
    .await;
}

/// A field with a maximum length, and the complaint about a longer value.
struct LengthLimit {
    object: Value,
    path: &'static str,
    make: Box<dyn Fn(usize) -> Value>,
    longest: usize,
    beyond: String,
}

impl LengthLimit {
    fn string(object: Value, path: &'static str, longest: usize) -> Self {
        Self::string_in(object, path, longest, Value::String)
    }

    /// A string inside the value that `wrap` returns.
    fn string_in(object: Value, path: &'static str, longest: usize, wrap: impl Fn(String) -> Value + 'static) -> Self {
        let make = Box::new(move |length| wrap("x".repeat(length)));
        Self { object, path, make, longest, beyond: format!("Too long: may not be more than {longest} ") }
    }

    fn list(object: Value, path: &'static str, longest: usize, item: impl Fn(usize) -> Value + 'static) -> Self {
        let make = Box::new(move |length| (0..length).map(&item).collect());
        let beyond = format!("Too many: {}: must have at most {longest} items", longest + 1);
        Self { object, path, make, longest, beyond }
    }
}

#[tokio::test]
async fn every_length_is_bounded() {
    let ns = SchemaNamespace::new().await;
    ns.write(Verb::Create, &conversation("alice")).await.unwrap();
    let (alice, new, binding) = (|| conversation("alice"), || conversation("new"), || address_binding("new"));
    let condition = |message| json!([{"type": "Ready", "status": "True", "reason": "Bound", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let cases = vec![
        LengthLimit::string(new(), "/spec/contact/address", 256),
        LengthLimit::string(new(), "/spec/contact/displayName", 256),
        // The limit counts characters, not bytes.
        LengthLimit::string_in(new(), "/spec/contact/displayName", 256, |name| json!(name.replace('x', "ü"))),
        LengthLimit::string(new(), "/spec/proxy/address", 256),
        LengthLimit::list(new(), "/spec/participants", 100, |number| json!({"identity": format!("agent-{number}")})),
        LengthLimit::string_in(new(), "/spec/participants", 256, |identity| json!([{"identity": identity}])),
        LengthLimit::string_in(new(), "/spec/ttlAfterClosed", 28, |text| json!("99999ms".repeat(4) + &text[28..])),
        LengthLimit::string(alice(), "/status/addressBindingName", 63),
        LengthLimit::string_in(alice(), "/status/conditions", 4096, condition),
        LengthLimit::string(binding(), "/spec/contactAddress", 256),
        LengthLimit::string(binding(), "/spec/proxyAddress", 256),
        LengthLimit::string(binding(), "/spec/conversationRef/namespace", 63),
        LengthLimit::string(binding(), "/spec/conversationRef/name", 253),
        LengthLimit::list(
            binding(),
            "/spec/admissions",
            64,
            |number| json!({"uid": format!("{number}"), "time": "2026-01-01T00:00:00Z"}),
        ),
        LengthLimit::string_in(
            binding(),
            "/spec/admissions",
            128,
            |uid| json!([{"uid": uid, "time": "2026-01-01T00:00:00Z"}]),
        ),
    ];
    check_all(cases, async |LengthLimit { object, path, make, longest, beyond }| {
        let by = if path.starts_with("/status") { Verb::MergePatchStatus } else { Verb::Create };
        let answer = ns.would_write(by, &with(object.clone(), path, make(longest))).await;
        let one_more = ns.would_write(by, &with(object, path, make(longest + 1))).await;
        let difference = differs(answer, None).or_else(|| differs(one_more, Some(&[beyond])));
        difference.map(|difference| format!("{path}, {longest} and one more: {difference}"))
    })
    .await;
}

/// The cost of the rules grows with the object, and the API server refuses an object whose rules exceed a budget. The largest admitted
/// object stays within the budget.
#[tokio::test]
async fn rules_stay_within_budget_on_the_largest_conversation() {
    let ns = SchemaNamespace::new().await;
    let identities: Vec<String> = (0..100).map(|number| format!("{number:x>256}")).collect();
    let participants =
        |identities: &[String]| identities.iter().map(|identity| json!({"identity": identity})).collect();
    let largest = json!({
        "channel": "Email",
        "contact": {"address": format!("{}@example.com", "a".repeat(242)), "displayName": "👩".repeat(256)},
        "proxy": {"address": format!("{}@example.org", "a".repeat(242))},
        "state": "Closed",
        "timers": {
            "inactiveAfter": "00001h00001m00001s00001ms",
            "closeAfter": "00002h00001m00001s00001ms",
            "closeUnassignedAfter": "00001h00001m00001s00001ms",
        },
        "ttlAfterClosed": "00001h00001m00001s00001ms",
    });
    let largest =
        with(with(conversation("largest"), "/spec", largest), "/spec/participants", participants(&identities));
    ns.write(Verb::Create, &largest).await.unwrap();

    let mut reversed = identities.clone();
    reversed.reverse();
    let reordered = with(largest.clone(), "/spec/participants", participants(&reversed));
    ns.would_write(Verb::Replace, &reordered).await.unwrap();

    reversed[99] = "somebody else".to_owned();
    let exchanged = with(largest.clone(), "/spec/participants", participants(&reversed));
    ns.would_write(Verb::Replace, &exchanged).await.unwrap();

    reversed[99] = reversed[0].clone();
    let twice = with(with(largest, "/metadata/name", json!("twice")), "/spec/participants", participants(&reversed));
    let refusal = ns.would_write(Verb::Create, &twice).await.unwrap_err();
    assert_eq!(
        refusal.differs_from(&["50433: ".to_owned(), "spec.participants[99]: Duplicate value".to_owned()]),
        None
    );
}

/// The CRD of conversations, in a group of its own.
fn crd_of_group(group: &str) -> Value {
    in_group(group, serde_json::to_value(switchboard::api::conversation_crd().unwrap()).unwrap())
}

fn in_group(group: &str, mut crd: Value) -> Value {
    crd["metadata"]["name"] = json!(format!("conversations.{group}"));
    crd["spec"]["group"] = json!(group);
    crd["spec"]["names"]["shortNames"] = json!([]);
    crd["spec"]["names"]["categories"] = json!([]);
    crd
}

/// Leaves the rules and the defaults out of a schema.
fn without_rules(schema: &mut Value) {
    if let Value::Object(fields) = schema {
        fields.remove("x-kubernetes-validations");
        fields.remove("default");
        fields.values_mut().for_each(without_rules);
    }
}

/// A schema without rules stands for that of any older version.
#[tokio::test]
async fn stored_conversations_stay_writable_after_a_crd_upgrade() {
    let ns = SchemaNamespace::new().await;
    let group = "upgrade.example.com";
    let apply = |crd: &Value| {
        let path = common::shared_control_plane().data_dir().join("upgraded-crd.json");
        std::fs::write(&path, crd.to_string()).unwrap();
        let path = path.to_str().unwrap();
        common::succeed(&mut ns.kubectl(&["apply", "--server-side", "--force-conflicts", "--filename", path]));
        common::succeed(&mut ns.kubectl(&["wait", "--for=condition=Established", "--filename", path]));
        common::eventually(&mut ns.kubectl(&["get", &format!("conversations.{group}")]));
    };
    let new = crd_of_group(group);
    let mut old = new.clone();
    without_rules(&mut old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    apply(&old);

    let of_group = |object: Value| with(object, "/apiVersion", json!(format!("{group}/v1alpha1")));
    let states = [(None, None), (Some("Closed"), None), (None, Some("Closed")), (Some("Closed"), Some("Closed"))];
    for (index, (requested, reported)) in states.into_iter().enumerate() {
        let mut object = of_group(conversation(&format!("c{index}")));
        if let Some(state) = requested {
            object["spec"]["state"] = json!(state);
        }
        ns.write(Verb::Create, &object).await.unwrap();
        if let Some(state) = reported {
            ns.write(Verb::MergePatchStatus, &with(object, "/status/state", json!(state))).await.unwrap();
        }
    }
    apply(&new);
    let malformed = with(of_group(conversation("malformed")), "/spec/contact/address", json!(" "));
    let deadline = std::time::Instant::now() + common::cluster::TIMEOUT;
    while ns.would_write(Verb::Create, &malformed).await.is_ok() {
        assert!(std::time::Instant::now() < deadline, "the new schema is not in force");
    }

    for (index, (_, reported)) in states.into_iter().enumerate() {
        let part = || of_group(json!({"kind": "Conversation", "metadata": {"name": format!("c{index}")}}));
        let spec = if reported.is_some() {
            json!({"state": null, "contact": {"address": "bob"}, "proxy": {"address": "shop"}})
        } else {
            json!({"contact": null, "participants": [{"identity": "agent-7"}]})
        };
        for (by, change) in [
            (Verb::MergePatch, with(part(), "/metadata/labels", json!({"team": "sales"}))),
            (Verb::MergePatchStatus, with(part(), "/status/reportedActivityTime", json!("2026-01-01T00:00:00Z"))),
            (Verb::MergePatch, with(part(), "/spec", spec)),
        ] {
            let written = ns.write(by, &change).await;
            assert!(written.is_ok(), "c{index}, {by:?} of {change}: {written:?}");
        }
    }
}

#[tokio::test]
async fn stored_addresses_stay_editable_after_an_upgrade() {
    let ns = SchemaNamespace::new().await;
    // kubectl takes the kind in the first group, which is that of the other tests.
    let group = "upgrade-of-addresses.example.com";
    let apply = |crd: Value| {
        let path = common::shared_control_plane().data_dir().join("addresses-crd.json");
        std::fs::write(&path, in_group(group, crd).to_string()).unwrap();
        let path = path.to_str().unwrap();
        common::succeed(&mut ns.kubectl(&["apply", "--server-side", "--force-conflicts", "--filename", path]));
        common::succeed(&mut ns.kubectl(&["wait", "--for=condition=Established", "--filename", path]));
        common::eventually(&mut ns.kubectl(&["get", &format!("conversations.{group}")]));
    };
    let of_group = |object: Value| with(object, "/apiVersion", json!(format!("{group}/v1alpha1")));
    apply(testdata::former_conversation_crd());
    // All that the former schema admits is stored.
    let creates = stream::iter(testdata::addresses().into_iter().enumerate()).map(async |(number, case)| {
        let name = format!("c{number}");
        let object = of_group(with(conversation(&name), "/spec", case.spec()));
        ns.write(Verb::Create, &object).await.is_ok().then_some((name, case))
    });
    let stored: Vec<_> = creates.buffer_unordered(CONCURRENCY).filter_map(async |stored| stored).collect().await;
    apply(serde_json::to_value(switchboard::api::conversation_crd().unwrap()).unwrap());
    let spec = json!({"channel": "Chat", "contact": {"address": "tel:1"}, "proxy": {"address": "desk"}});
    let refused = of_group(with(conversation("refused"), "/spec", spec));
    let deadline = std::time::Instant::now() + common::cluster::TIMEOUT;
    while ns.would_write(Verb::Create, &refused).await.is_ok() {
        assert!(std::time::Instant::now() < deadline, "the new schema is not in force");
    }

    let newly_refused: Vec<_> = stored.iter().filter(|(_, case)| case.refused.is_some()).collect();
    assert!(newly_refused.len() > 40, "{}", newly_refused.len());
    assert!(stored.len() > newly_refused.len() + 100, "{}", stored.len());
    for (_, case) in &newly_refused {
        assert!(case.refused.as_ref().unwrap().contains("no scheme"), "{:?} is refused by another rule", case.address);
    }
    check_all(stored, async |(name, case)| {
        let part = |path: &str, value: Value| {
            of_group(with(json!({"kind": "Conversation", "metadata": {"name": name}}), path, value))
        };
        let stored = ns.get(&part("/metadata/name", json!(name))).await.unwrap();
        let mut replaced = of_group(conversation(&name));
        replaced["spec"] = stored["spec"].clone();
        replaced["spec"]["timers"] = json!({"closeAfter": "1h"});
        let mut changes = vec![
            (Verb::MergePatch, part("/metadata/labels", json!({"team": "sales"}))),
            (Verb::MergePatch, part("/spec/participants", json!([{"identity": "agent-7"}]))),
            (Verb::Replace, replaced.clone()),
            (Verb::Apply, replaced),
            (Verb::MergePatchStatus, part("/status/reportedActivityTime", json!("2026-01-01T00:00:00Z"))),
            (Verb::MergePatch, part("/spec/state", json!("Closed"))),
            (Verb::MergePatchStatus, part("/status/state", json!("Closed"))),
            (Verb::MergePatch, part("/spec/participants", json!([]))),
        ];
        if case.role == "contact" {
            changes.insert(1, (Verb::MergePatch, part("/spec/contact/displayName", json!("Alice"))));
            changes.push((Verb::MergePatch, part("/spec/contact", Value::Null)));
        }
        for (by, change) in changes {
            let options = if by == Verb::Apply { "&force=true" } else { "" };
            let (written, warnings) = ns.write_with(by, &change, options).await;
            if written.is_err() || !warnings.is_empty() {
                return Some(format!("{} {:?}: {by:?} of {change}: {written:?} {warnings:?}", case.role, case.address));
            }
        }
        let item = ns.item(&part("/metadata/name", json!(name)));
        ns.request(Method::DELETE, &item, "application/json", &Value::Null).await.err().map(|refusal| refusal.message)
    })
    .await;
}

#[tokio::test]
async fn new_conversation_is_pending_without_a_write() {
    let ns = SchemaNamespace::new().await;
    let created = ns.write(Verb::Create, &conversation("alice")).await.unwrap();
    let seen = ns.get(&conversation("alice")).await.unwrap();
    assert_eq!(seen, created, "the resourceVersion is that of its creation");
    assert_eq!(seen["status"]["observedGeneration"], 0);
    let conditions: Vec<_> = seen["status"]["conditions"].as_array().unwrap().iter().collect();
    assert_eq!(
        conditions.iter().map(|condition| &condition["type"]).collect::<Vec<_>>(),
        ["Ready", "Bound", "Unassigned"]
    );
    for condition in conditions {
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("Unknown"), &json!("Pending")));
    }
    let owned = seen["metadata"]["managedFields"].to_string();
    assert!(!owned.contains("f:status"), "the status has no owner: {owned}");
}

#[tokio::test]
async fn status_is_dropped_at_creation() {
    let ns = SchemaNamespace::new().await;
    let closed = with(conversation("alice"), "/status/state", json!("Closed"));
    let created = ns.write(Verb::Create, &closed).await.unwrap();
    assert_eq!(created["status"].get("state"), None);
    assert_eq!(created["status"]["observedGeneration"], 0);
}

#[tokio::test]
async fn spec_and_status_are_written_separately() {
    let ns = SchemaNamespace::new().await;
    ns.write(Verb::Create, &conversation("alice")).await.unwrap();
    let both = with(with(conversation("alice"), "/spec/state", json!("Inactive")), "/status/state", json!("Closed"));
    let written = ns.write(Verb::MergePatch, &both).await.unwrap();
    assert_eq!((&written["spec"]["state"], written["status"].get("state")), (&json!("Inactive"), None));
    let both = with(with(conversation("alice"), "/spec/state", json!("Active")), "/status/state", json!("Inactive"));
    let written = ns.write(Verb::MergePatchStatus, &both).await.unwrap();
    assert_eq!((&written["spec"]["state"], &written["status"]["state"]), (&json!("Inactive"), &json!("Inactive")));
}

#[tokio::test]
async fn repeated_apply_changes_nothing() {
    let file = testdata::root().join("tests/testdata/admitted/every-field.yaml");
    let file = file.to_str().unwrap();
    for apply in [&["apply", "--filename", file][..], &["apply", "--server-side", "--filename", file]] {
        let ns = SchemaNamespace::new().await;
        common::succeed(&mut ns.kubectl(apply));
        let status = json!({"observedGeneration": 1, "state": "Active", "lastActivityTime": "2026-01-01T00:00:00Z"});
        ns.write(Verb::MergePatchStatus, &with(conversation("alice"), "/status", status)).await.unwrap();
        let before = ns.get(&conversation("alice")).await.unwrap();
        common::succeed(&mut ns.kubectl(apply));
        assert_eq!(ns.get(&conversation("alice")).await.unwrap(), before, "{apply:?}");
    }
}

#[tokio::test]
async fn kubectl_dry_run_shows_the_refusal() {
    let ns = SchemaNamespace::new().await;
    let file = testdata::root().join("tests/testdata/refused/48025-sms-with-separators.yaml");
    let complaint = common::fail(&mut ns.kubectl(&["apply", "--dry-run=server", "--filename", file.to_str().unwrap()]));
    let expected = "spec.contact.address: Invalid value: 48025: the contact address must be an E.164 number ('+' and 2 to \
                    15 digits without a leading zero), a short code";
    assert!(matches_wording(&complaint, expected), "{complaint}");
}

#[tokio::test]
async fn explain_reads_as_documentation() {
    /// The fields below `schema`, with their descriptions.
    fn fields(path: &str, schema: &Value, found: &mut Vec<(String, String)>) {
        let fields_of = if schema["type"] == "array" { &schema["items"] } else { schema };
        for (name, schema) in fields_of["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            fields(&path, schema, found);
            found.push((path, schema["description"].as_str().unwrap().to_owned()));
        }
    }
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let ns = SchemaNamespace::new().await;
    for crd in switchboard::api::crds().unwrap() {
        let crd = serde_json::to_value(crd).unwrap();
        let kind = crd["spec"]["names"]["singular"].as_str().unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut found = Vec::new();
        fields(&format!("{kind}.spec"), schema, &mut found);
        let overview = common::succeed(&mut ns.kubectl(&["explain", "--recursive", &format!("{kind}.spec")]));
        assert!(words(&overview).contains(&words(schema["description"].as_str().unwrap())), "{overview}");
        for (path, description) in found {
            let (_, name) = path.rsplit_once('.').unwrap();
            assert!(overview.contains(&format!(" {name}\t<")), "{path} is not in {overview}");
            let explained = common::succeed(&mut ns.kubectl(&["explain", &path]));
            assert!(words(&explained).contains(&format!("DESCRIPTION: {}", words(&description))), "{explained}");
        }
    }
}

/// The cells of a table that kubectl printed, without the empty ones.
fn table(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect()
}

#[tokio::test]
async fn kubectl_get_shows_the_printer_columns() {
    let ns = SchemaNamespace::new().await;
    let alice =
        with(conversation("alice"), "/spec/participants", json!([{"identity": "agent-7"}, {"identity": "agent-8"}]));
    ns.write(Verb::Create, &alice).await.unwrap();
    ns.write(Verb::Create, &conversation("fresh")).await.unwrap();
    let bound = json!({"type": "Bound", "status": "True", "reason": "BindingHeld", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let unassigned = json!({"type": "Unassigned", "status": "False", "reason": "Assigned", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = json!({
        "state": "Active",
        "stateReason": "Spec",
        "lastActivityTime": "2026-01-01T00:00:00Z",
        "deadlines": {"inactiveTime": "2999-01-01T00:00:00Z", "closeTime": "2999-01-02T00:00:00Z"},
        "addressBindingName": "chat-shown",
        "conditions": [unassigned, bound],
    });
    ns.write(Verb::MergePatchStatus, &with(conversation("alice"), "/status", status)).await.unwrap();
    ns.write(Verb::Create, &address_binding("chat-shown")).await.unwrap();

    // The rows omit the age, which changes.
    let shown = common::succeed(&mut ns.kubectl(&["get", "conversation/alice", "conversation/fresh", "ab/chat-shown"]));
    let shown = table(&shown);
    let rows = [
        "NAME CHANNEL CONTACT PROXY STATE ASSIGNED-TO BOUND CLOSES AGE",
        "conversation.switchboard.dev/alice Chat alice desk Active agent-7 True 2999-01-02T00:00:00Z",
        "conversation.switchboard.dev/fresh Chat alice desk Unknown",
        "",
        "NAME CHANNEL CONTACT PROXY NAMESPACE CONVERSATION AGE",
        "addressbinding.switchboard.dev/chat-shown Chat alice desk sales alice",
    ];
    assert_eq!(shown.len(), rows.len(), "{shown:?}");
    for (shown, row) in shown.iter().zip(rows) {
        let row: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(shown[..row.len()], row);
    }

    let wide = common::succeed(&mut ns.kubectl(&["get", "conv", "alice", "--output", "wide"]));
    let wide = table(&wide);
    let columns = ["UNASSIGNED", "STATE-REASON", "LAST-ACTIVITY", "INACTIVE-AT", "CLOSE-AFTER", "BINDING"];
    assert_eq!(wide[0][9..], columns);
    assert_eq!(wide[1][9..], ["False", "Spec", "2026-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "chat-shown"]);

    let category = common::succeed(&mut ns.kubectl(&["get", "switchboard", "--output", "name"]));
    for name in ["conversation.switchboard.dev/alice", "addressbinding.switchboard.dev/chat-shown"] {
        assert!(category.lines().any(|line| line == name), "{category}");
    }
}

#[tokio::test]
async fn field_selectors_match_exactly() {
    let ns = SchemaNamespace::new().await;
    for (name, contact) in [("alice", "alice@example.com"), ("another", "alice@example.community")] {
        let spec =
            json!({"channel": "Email", "contact": {"address": contact}, "proxy": {"address": "desk@example.org"}});
        ns.write(Verb::Create, &with(conversation(name), "/spec", spec)).await.unwrap();
        let binding = with(address_binding(&format!("email-{name}")), "/spec/contactAddress", json!(contact));
        ns.write(Verb::Create, &with(binding, "/spec/conversationRef/namespace", json!(ns.namespace))).await.unwrap();
    }
    ns.write(Verb::MergePatchStatus, &with(conversation("another"), "/status/state", json!("Closed"))).await.unwrap();
    let in_namespace = format!("spec.conversationRef.namespace={}", ns.namespace);
    for (kind, selector, expected) in [
        ("conversation", "spec.contact.address=alice@example.com".to_owned(), &["alice"][..]),
        ("conversation", "spec.proxy.address=desk@example.org,spec.channel=Email".to_owned(), &["alice", "another"]),
        ("conversation", "spec.channel=SMS".to_owned(), &[]),
        ("conversation", "status.state=Closed".to_owned(), &["another"]),
        ("conversation", "status.state!=Closed".to_owned(), &["alice"]),
        ("addressbinding", "spec.contactAddress=alice@example.com,spec.proxyAddress=desk".to_owned(), &["email-alice"]),
        (
            "addressbinding",
            format!("{in_namespace},spec.conversationRef.name=alice,spec.channel=Chat"),
            &["email-alice", "email-another"],
        ),
    ] {
        let names = ["get", kind, "--output", "name", "--field-selector", &selector];
        let found = common::succeed(&mut ns.kubectl(&names));
        let expected: Vec<String> = expected.iter().map(|name| format!("{kind}.switchboard.dev/{name}")).collect();
        assert_eq!(found.lines().collect::<Vec<_>>(), expected, "{selector}");
    }
}

/// A value in a field selector, as `EscapeValue` of k8s.io/apimachinery escapes it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

#[tokio::test]
async fn field_selectors_find_escaped_ids() {
    let ns = SchemaNamespace::new().await;
    let ids = ["urn:mbid:AQAA+x0==", "a,b", r"a\b", r"a\,b=c", "=", ",", r"\", "a,spec.channel=SMS", "a"];
    for (number, id) in ids.iter().enumerate() {
        let spec =
            json!({"channel": "AppleMessages", "contact": {"address": id}, "proxy": {"address": format!("{id}-desk")}});
        ns.write(Verb::Create, &with(conversation(&format!("c{number}")), "/spec", spec)).await.unwrap();
        let binding = with(address_binding(&format!("applemessages-{number}")), "/spec/contactAddress", json!(id));
        ns.write(Verb::Create, &with(binding, "/spec/conversationRef/namespace", json!(ns.namespace))).await.unwrap();
    }
    let conversations = kube::Api::<switchboard::api::Conversation>::namespaced(ns.client.clone(), &ns.namespace);
    let claims = kube::Api::<switchboard::api::AddressBinding>::all(ns.client.clone());
    for (number, id) in ids.iter().enumerate() {
        let selector = format!(
            "spec.channel=AppleMessages,spec.contact.address={},spec.proxy.address={}",
            escaped(id),
            escaped(&format!("{id}-desk"))
        );
        let names = ["get", "conversation", "--output", "name", "--field-selector", &selector];
        let found = common::succeed(&mut ns.kubectl(&names));
        assert_eq!(found.trim(), format!("conversation.switchboard.dev/c{number}"), "{selector}");
        let found = conversations.list(&ListParams::default().fields(&selector)).await.unwrap();
        assert_eq!(
            found.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(),
            [format!("c{number}")],
            "{selector}"
        );

        let in_namespace = format!("spec.conversationRef.namespace={}", ns.namespace);
        let selector = format!("{in_namespace},spec.contactAddress={}", escaped(id));
        let found = claims.list(&ListParams::default().fields(&selector)).await.unwrap();
        let found = found.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
        assert_eq!(found, [format!("applemessages-{number}")], "{selector}");
    }
    for unescaped in ["a,b", r"a\b"] {
        let selector = format!("spec.contact.address={unescaped}");
        common::fail(&mut ns.kubectl(&["get", "conversation", "--field-selector", &selector]));
    }
}
