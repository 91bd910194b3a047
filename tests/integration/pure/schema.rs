//! The generated schemas, and the parsers that implement the same rules. Tier: pure.

use crate::testdata;
use serde_json::{Map, Value, json};
use switchboard::api::{
    AddressBinding, Channel, Conversation, ConversationStatus, Duration, ProxyAddress, Time, Timer,
};
use switchboard::core::manager::Manager;

/// The CRDs as the types generate them.
fn crds() -> [Value; 3] {
    switchboard::api::crds().unwrap().map(|crd| serde_json::to_value(crd).unwrap())
}

fn version(crd: &Value) -> &Value {
    let [version] = &crd["spec"]["versions"].as_array().unwrap()[..] else { panic!("one version") };
    version
}

fn root_schema(crd: &Value) -> &Value {
    &version(crd)["schema"]["openAPIV3Schema"]
}

/// A field, a list item or the root of a schema.
struct Node<'a> {
    /// The path, such as `Conversation.spec.participants[].identity`.
    path: String,
    /// False for the root and for the items of a list.
    is_field: bool,
    schema: &'a Map<String, Value>,
}

impl Node<'_> {
    fn field(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    fn is(&self, kind: &str) -> bool {
        self.schema["type"] == kind
    }

    fn rules(&self) -> impl Iterator<Item = &Value> {
        self.schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten()
    }
}

/// The nodes of both schemas, children before parents.
fn nodes(crds: &[Value]) -> Vec<Node<'_>> {
    fn walk<'a>(path: String, is_field: bool, schema: &'a Value, nodes: &mut Vec<Node<'a>>) {
        let schema = schema.as_object().unwrap();
        if let Some(properties) = schema.get("properties") {
            for (name, schema) in properties.as_object().unwrap() {
                walk(format!("{path}.{name}"), true, schema, nodes);
            }
        }
        if let Some(items) = schema.get("items") {
            walk(format!("{path}[]"), false, items, nodes);
        }
        nodes.push(Node { path, is_field, schema });
    }
    let mut nodes = Vec::new();
    for crd in crds {
        walk(crd["spec"]["names"]["kind"].as_str().unwrap().to_owned(), false, root_schema(crd), &mut nodes);
    }
    nodes
}

/// The paths of the nodes for which `is_wrong` is true.
fn wrong(crds: &[Value], is_wrong: impl Fn(&Node) -> bool) -> Vec<String> {
    nodes(crds).into_iter().filter(is_wrong).map(|node| node.path).collect()
}

const NONE: [&str; 0] = [];

#[test]
fn crds_match_the_types() {
    for crd in switchboard::api::crds().unwrap() {
        let file = format!("crds/{}.yaml", crd.spec.names.plural);
        let generated = serde_saphyr::to_string(&crd).unwrap();
        let stored = std::fs::read_to_string(testdata::root().join(&file)).unwrap();
        assert!(stored.trim() == generated.trim(), "{file} is stale: run `make generate`");
    }
}

#[test]
fn every_string_is_bounded() {
    let unbounded = wrong(&crds(), |node| {
        node.is("string") && !node.schema.contains_key("maxLength") && !node.schema.contains_key("enum")
    });
    assert_eq!(unbounded, NONE);
}

#[test]
fn every_list_is_typed_and_bounded() {
    let untyped = wrong(&crds(), |node| {
        node.is("array")
            && !(node.schema.contains_key("maxItems") && node.schema.contains_key("x-kubernetes-list-type"))
    });
    assert_eq!(untyped, NONE);
}

#[test]
fn status_has_the_only_default() {
    assert_eq!(
        wrong(&crds(), |node| node.schema.contains_key("default")),
        ["Conversation.status", "ProxyAddress.status"]
    );
}

#[test]
fn default_status_is_pending() {
    let [conversation, ..] = crds();
    let status: ConversationStatus =
        serde_json::from_value(root_schema(&conversation)["properties"]["status"]["default"].clone()).unwrap();
    assert_eq!(status.observed_generation, Some(0));
    assert_eq!(status.state, None);
    let conditions = serde_json::to_value(&status.conditions).unwrap();
    let pending = |condition: &str| {
        json!({
            "type": condition,
            "status": "Unknown",
            "reason": "Pending",
            "message": "Waiting for controller",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        })
    };
    assert_eq!(conditions, json!(["Ready", "Bound", "Unassigned"].map(pending)));
}

#[test]
fn every_field_has_a_unique_description() {
    let crds = crds();
    let nodes = nodes(&crds);
    let description =
        |node: &Node| node.schema.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    for node in &nodes {
        let text = description(node);
        assert!(text.ends_with('.'), "{}: {text:?} is not a sentence", node.path);
        let kind = node.path.split('.').next();
        // Two equal descriptions usually describe the type that the fields share, not the fields. Both sinks have the same fields.
        let path = |node: &Node| node.path.replace(".deadLetterSink.", ".sink.");
        let duplicate = nodes.iter().find(|other| {
            node.is_field
                && other.is_field
                && path(other) != path(node)
                && other.path.split('.').next() == kind
                && description(other) == text
        });
        assert!(
            duplicate.is_none(),
            "{} and {} read the same",
            node.path,
            duplicate.map_or("", |duplicate| &duplicate.path)
        );
    }
}

#[test]
fn managers_are_told_by_their_marks() {
    for (metadata, manager) in testdata::managers() {
        let read = Manager::of(&serde_json::from_value(metadata.clone()).unwrap());
        assert_eq!(read.map(|manager| manager.to_string()), manager, "{metadata}");
    }
}

#[test]
fn schemas_are_structural_and_closed() {
    // The keywords of structural schemas, except those that permit an unknown field, or a null where server-side apply leaves none.
    const NULLABLE: [&str; 2] = ["Conversation.spec.participants", "Conversation.spec.timers"];
    const LABELS: [&str; 2] =
        ["ProxyAddress.spec.namespaces.selector.matchLabels", "ProxyAddress.spec.inbound.autocreate.labels"];
    const KEYWORDS: [&str; 19] = [
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-map-type",
    ];
    for node in nodes(&crds()) {
        assert!(node.schema["type"].is_string(), "{} has no type", node.path);
        let foreign: Vec<&String> = node
            .schema
            .keys()
            .filter(|key| !KEYWORDS.contains(&key.as_str()) && *key != "x-kubernetes-validations" && *key != "nullable")
            .filter(|key| {
                !(LABELS.contains(&node.path.as_str())
                    && ["additionalProperties", "maxProperties"].contains(&key.as_str()))
            })
            .collect();
        assert!(foreign.is_empty(), "{} has {foreign:?}", node.path);
        assert_eq!(node.schema.contains_key("nullable"), NULLABLE.contains(&node.path.as_str()), "{}", node.path);
    }
}

#[test]
fn objects_have_only_spec_and_status() {
    let crds = crds();
    let fields = |crd| root_schema(crd)["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let [conversation, binding, proxy_address] = &crds;
    for crd in [conversation, proxy_address] {
        assert_eq!(fields(crd), ["spec", "status"]);
        assert_eq!(version(crd)["subresources"], json!({"status": {}}));
    }
    // Without a status subresource, one atomic write stores a whole claim.
    assert_eq!(fields(binding), ["spec"]);
    assert_eq!(version(binding).get("subresources"), None);
}

#[test]
fn values_follow_the_api_conventions() {
    let crds = crds();
    assert_eq!(
        wrong(&crds, |node| node.is("boolean") || node.is("number")),
        NONE,
        "the API conventions discourage both types"
    );
    let integers = wrong(&crds, |node| {
        node.is("integer") && !node.schema.get("format").is_some_and(|f| f == "int32" || f == "int64")
    });
    assert_eq!(integers, NONE);
    let is_camel_case = |value: &Value| {
        let value = value.as_str().unwrap();
        value.starts_with(|first: char| first.is_ascii_uppercase())
            && value.chars().all(|rest| rest.is_ascii_alphanumeric())
    };
    let enums = wrong(&crds, |node| {
        node.schema.get("enum").is_some_and(|values| !values.as_array().unwrap().iter().all(is_camel_case))
    });
    assert_eq!(enums, NONE);
    let instants = wrong(&crds, |node| {
        // The one that clients write has a rule with a message in place of the format and the pattern.
        let is_reported = node.rules().any(|rule| rule["message"].as_str().unwrap().contains("RFC 3339"));
        let is_instant = is_reported || node.schema.get("format").is_some_and(|format| format == "date-time");
        let is_named_so = node.field() == "time" || node.field().ends_with("Time");
        is_instant != is_named_so || (is_instant && node.schema.contains_key("pattern") == is_reported)
    });
    assert_eq!(instants, NONE);
    let durations = wrong(&crds, |node| {
        let is_duration = node.rules().any(|rule| rule["rule"].as_str().unwrap().contains("duration(self)"));
        is_duration != (node.field().ends_with("After") || node.field() == "ttlAfterClosed")
    });
    assert_eq!(durations, NONE);
}

#[test]
fn every_rule_states_the_requirement_and_the_field() {
    let mut rules = 0;
    for node in nodes(&crds()) {
        for rule in node.rules() {
            rules += 1;
            let path = &node.path;
            let message = rule["message"].as_str().unwrap();
            assert!(message.contains("must "), "{path}: {message:?} does not state a requirement");
            assert!(node.is("string") || rule["fieldPath"].is_string(), "{path}: {message:?} does not state a field");
            for text in [Some(message), rule["messageExpression"].as_str()].into_iter().flatten() {
                assert!(text.contains("must "), "{path}: {text:?} does not state a requirement");
                assert!(!text.contains("is immutable"), "{path}: Flux would delete the object upon {text:?}");
            }
        }
    }
    assert!(rules > 20, "only {rules} rules were found");
}

#[test]
fn every_error_code_starts_a_message_of_the_schema() {
    let crds = crds();
    for code in ["48025", "48026", "48027", "50377", "50433"] {
        let starts = |rule: &Value| rule["message"].as_str().unwrap().starts_with(&format!("{code}: "));
        assert!(nodes(&crds).iter().any(|node| node.rules().any(starts)), "{code}");
    }
}

#[test]
fn printer_columns_match_the_api() {
    let columns = |crd: &Value, priority: i64| -> Vec<(String, String)> {
        let columns = version(crd)["additionalPrinterColumns"].as_array().unwrap();
        let text = |column: &Value, key: &str| column[key].as_str().unwrap().to_owned();
        assert!(columns.iter().all(|column| text(column, "description").ends_with('.')));
        let shown = columns.iter().filter(|column| column["priority"].as_i64().unwrap_or(0) == priority);
        shown.map(|column| (text(column, "name").to_uppercase(), text(column, "type"))).collect()
    };
    let strings =
        |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), "string".to_owned())).collect::<Vec<_>>();
    let age = ("AGE".to_owned(), "date".to_owned());
    let [conversation, binding, proxy_address] = &crds();

    let mut expected = strings(&["CHANNEL", "CONTACT", "PROXY", "STATE", "ASSIGNED-TO", "BOUND", "CLOSES"]);
    expected.push(age.clone());
    assert_eq!(columns(conversation, 0), expected);
    assert_eq!(
        columns(conversation, 1),
        strings(&["UNASSIGNED", "STATE-REASON", "LAST-ACTIVITY", "INACTIVE-AT", "CLOSE-AFTER", "BINDING"]),
        "`type: date` would print <invalid> for an instant in the future"
    );

    let mut expected = strings(&["CHANNEL", "CONTACT", "PROXY", "NAMESPACE", "CONVERSATION"]);
    expected.push(age.clone());
    assert_eq!(columns(binding, 0), expected);
    assert!(columns(binding, 1).is_empty());

    let mut expected = strings(&["CHANNEL", "ADDRESS", "NAMESPACES", "READY", "REASON"]);
    expected.push(age);
    assert_eq!(columns(proxy_address, 0), expected);
    assert_eq!(columns(proxy_address, 1), strings(&["CLOSE-AFTER", "AUTOCREATE-IN"]));
}

#[test]
fn selectable_fields_match_the_api() {
    let selectable = |crd: &Value| -> Vec<String> {
        let fields = version(crd)["selectableFields"].as_array().unwrap();
        fields.iter().map(|field| field["jsonPath"].as_str().unwrap().to_owned()).collect()
    };
    let [conversation, binding, proxy_address] = &crds();
    assert_eq!(selectable(proxy_address), [".spec.channel", ".spec.address"]);
    assert_eq!(
        selectable(conversation),
        [".spec.channel", ".spec.contact.address", ".spec.proxy.address", ".status.state"]
    );
    let strings = [".spec.channel", ".spec.contactAddress", ".spec.proxyAddress"];
    let conversation = [".spec.conversationRef.namespace", ".spec.conversationRef.name"];
    assert_eq!(selectable(binding), [&strings[..], &conversation].concat());
}

#[test]
fn names_scopes_and_groups_match_the_api() {
    let names =
        |crd: &Value| (crd["spec"]["names"].clone(), crd["spec"]["scope"].clone(), crd["spec"]["group"].clone());
    let [conversation, binding, proxy_address] = &crds();
    let expected = |kind: &str, short: &str| {
        let singular = kind.to_lowercase();
        let ending = if singular.ends_with('s') { "es" } else { "s" };
        json!({
            "kind": kind,
            "singular": singular,
            "plural": format!("{singular}{ending}"),
            "shortNames": [short],
            "categories": ["switchboard"],
        })
    };
    assert_eq!(names(conversation), (expected("Conversation", "conv"), json!("Namespaced"), json!("switchboard.dev")));
    assert_eq!(names(binding), (expected("AddressBinding", "ab"), json!("Cluster"), json!("switchboard.dev")));
    assert_eq!(names(proxy_address), (expected("ProxyAddress", "pa"), json!("Cluster"), json!("switchboard.dev")));
}

/// Whether `object` has a value at `path`, which is the path of a [`Node`] without the kind.
fn has_value(path: &str, object: &Value) -> bool {
    let Some((first, rest)) = path.split_once('.') else {
        return match path.strip_suffix("[]") {
            Some(list) => object[list].as_array().is_some_and(|items| !items.is_empty()),
            None => !object[path].is_null(),
        };
    };
    match first.strip_suffix("[]") {
        Some(list) => object[list].as_array().is_some_and(|items| items.iter().any(|item| has_value(rest, item))),
        None => has_value(rest, &object[first]),
    }
}

#[test]
fn every_field_and_channel_is_in_an_admitted_manifest() {
    let manifests = testdata::manifests("admitted");
    let objects: Vec<&Value> =
        manifests.iter().flat_map(|manifest| &manifest.documents).map(|document| &document.object).collect();
    for node in nodes(&crds()) {
        let Some((kind, path)) = node.path.split_once('.') else {
            continue;
        };
        assert!(
            objects.iter().any(|object| object["kind"] == kind && has_value(path, object)),
            "no admitted manifest has {}",
            node.path
        );
    }
    let [conversation, ..] = &crds();
    let channels = &root_schema(conversation)["properties"]["spec"]["properties"]["channel"]["enum"];
    for channel in channels.as_array().unwrap() {
        assert!(
            objects.iter().any(|object| object["spec"]["channel"] == *channel),
            "no admitted manifest uses {channel}"
        );
    }
}

#[test]
fn admitted_manifests_survive_a_round_trip() {
    for manifest in testdata::manifests("admitted") {
        for document in manifest.documents.iter().filter(|document| document.by.is_whole()) {
            let object = document.object.clone();
            let written = match object["kind"].as_str().unwrap() {
                "Conversation" => serde_json::from_value::<Conversation>(object.clone()).and_then(serde_json::to_value),
                "AddressBinding" => {
                    serde_json::from_value::<AddressBinding>(object.clone()).and_then(serde_json::to_value)
                }
                "ProxyAddress" => serde_json::from_value::<ProxyAddress>(object.clone()).and_then(serde_json::to_value),
                kind => panic!("{}: {kind}", manifest.file),
            };
            let written = written.unwrap_or_else(|error| panic!("{}: {error}", manifest.file));
            let (written, object) =
                (without_empty_lists(&written["spec"]), without_empty_lists(&testdata::without_nulls(&object["spec"])));
            assert_eq!(written, object, "{}", manifest.file);
        }
    }
}

/// `value` without empty lists, which are equal to absent ones, and with durations in their shortest format.
fn without_empty_lists(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| value.as_array().is_none_or(|items| !items.is_empty()))
            .map(|(key, value)| (key.clone(), without_empty_lists(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::String(text) => {
            text.parse::<Duration>().map_or_else(|_| value.clone(), |duration| json!(duration.to_string()))
        }
        _ => value.clone(),
    }
}

#[test]
fn parser_accepts_the_addresses_that_the_schema_admits() {
    for testdata::AddressCase { channel, role, address, refused, write } in testdata::addresses() {
        let case = format!("{role} {address:?} on {channel}");
        match (testdata::parse_address(&channel, role, &address), refused) {
            (Ok(parsed), None) => assert_eq!(parsed.as_str(), address, "{case}"),
            (Err(error), Some(words)) => {
                assert!(error.to_string().contains(&words), "{case}: {error}");
                assert_eq!(error.canonical, write, "{case}");
            }
            (parsed, refused) => panic!("{case} is {parsed:?}, expected {refused:?}"),
        }
    }
}

#[test]
fn parser_accepts_the_canonical_addresses_that_it_proposes() {
    for testdata::AddressCase { channel, role, address, write, .. } in testdata::addresses() {
        let Some(canonical) = write else { continue };
        assert!(
            testdata::parse_address(&channel, role, &canonical).is_ok(),
            "{canonical:?} for {address:?} on {channel}"
        );
    }
}

#[test]
fn schema_refuses_the_addresses_that_the_parser_rejects() {
    let manifests = [testdata::manifests("admitted"), testdata::manifests("refused")];
    for manifest in manifests.iter().flatten() {
        for (index, document) in manifest.documents.iter().enumerate() {
            let is_refused = index + 1 == manifest.documents.len();
            let spec = &document.object["spec"];
            if !document.by.is_whole() || serde_json::from_value::<Channel>(spec["channel"].clone()).is_err() {
                continue;
            }
            for (role, code) in [("contact", "48025"), ("proxy", "48026")] {
                let Some(address) = spec[role]["address"].as_str() else {
                    continue;
                };
                let parsed = testdata::parse_address(spec["channel"].as_str().unwrap(), role, address);
                let refusal =
                    manifest.refused.iter().find(|refusal| is_refused && refusal.contains(&format!("{code}: ")));
                assert_eq!(parsed.is_err(), refusal.is_some(), "{}: the {role} address", manifest.file);
                if let (Err(error), Some(refusal)) = (parsed, refusal) {
                    assert_eq!(
                        refusal.split_once("; write ").map(|(_, write)| write.to_owned()),
                        error.canonical,
                        "{}",
                        manifest.file
                    );
                }
            }
        }
    }
}

#[test]
fn parser_accepts_the_durations_that_the_schema_admits() {
    for testdata::DurationCase { duration, meaning } in testdata::durations() {
        match (duration.parse::<Duration>(), meaning) {
            (Ok(parsed), Ok(milliseconds)) => {
                assert_eq!(parsed.as_std(), std::time::Duration::from_millis(milliseconds), "{duration:?}");
            }
            (Err(error), Err(refused)) => assert!(error.to_string().contains(&refused), "{duration:?}: {error}"),
            (parsed, meaning) => panic!("{duration:?} is {parsed:?}, expected {meaning:?}"),
        }
    }
}

#[test]
fn schema_and_parser_reject_durations_with_the_same_message() {
    let crds = crds();
    let of_durations = ["", "0s"].map(|text| text.parse::<Duration>().unwrap_err().to_string());
    let of_timers = ["", "0s"].map(|text| text.parse::<Timer>().unwrap_err().to_string());
    let durations: Vec<Node> = nodes(&crds).into_iter().filter(|node| node.field().contains("After")).collect();
    assert_eq!(durations.len(), 11);
    for node in durations {
        let is_timer = node.field() != "ttlAfterClosed" && !node.path.contains(".status.");
        let words = if is_timer { &of_timers } else { &of_durations };
        assert_eq!(
            node.rules().map(|rule| rule["message"].as_str().unwrap()).collect::<Vec<_>>(),
            *words,
            "{}",
            node.path
        );
    }
}

#[test]
fn parser_accepts_the_instants_that_the_schema_admits() {
    for (instant, refused) in testdata::instants() {
        if refused.is_none() {
            assert!(instant.parse::<Time>().is_ok(), "{instant}");
        }
    }
}
