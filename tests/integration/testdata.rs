//! Reads the manifests of `tests/testdata`. Its README describes their format.

pub mod examples;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use switchboard::api::Channel;
use switchboard::core::address::{Address, InvalidAddress, Role};

/// The root of the repository, in which cargo runs tests.
pub fn root() -> &'static Path {
    Path::new(".")
}

fn directory() -> PathBuf {
    root().join("tests/testdata")
}

/// A file of `admitted/` or `refused/`.
pub struct Manifest {
    /// The folder and the name of the file.
    pub file: String,
    /// The expected error messages for the last document. Empty if all documents are admitted.
    pub refused: Vec<String>,
    /// Its documents, in order.
    pub documents: Vec<Document>,
}

/// One document of a manifest.
pub struct Document {
    /// The request that writes it.
    pub by: Verb,
    /// The expected warnings; each must contain its text.
    pub warned: Vec<String>,
    /// The body of the request.
    pub object: Value,
}

/// The request that writes a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// POST.
    Create,
    /// PUT, with the current resourceVersion.
    Replace,
    /// PUT to the status subresource, with the current resourceVersion.
    ReplaceStatus,
    /// Server-side apply.
    Apply,
    /// Server-side apply to the status subresource.
    ApplyStatus,
    /// JSON merge patch.
    MergePatch,
    /// JSON merge patch of the status subresource.
    MergePatchStatus,
}

impl Verb {
    fn read(text: &str) -> Option<Self> {
        Some(match text {
            "create" => Self::Create,
            "replace" => Self::Replace,
            "replace of the status" => Self::ReplaceStatus,
            "apply" => Self::Apply,
            "apply of the status" => Self::ApplyStatus,
            "merge patch" => Self::MergePatch,
            "merge patch of the status" => Self::MergePatchStatus,
            _ => return None,
        })
    }

    /// Whether the request contains a whole object with its spec, not only a part.
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Create | Self::Replace | Self::Apply)
    }
}

impl Manifest {
    fn read(folder: &str, path: &Path) -> Self {
        let name = path.file_name().unwrap().to_string_lossy();
        let file = format!("{folder}/{name}");
        let text = std::fs::read_to_string(path).unwrap();
        let comments = |document: &str, key: &str| -> Vec<String> {
            document.lines().filter_map(|line| line.strip_prefix(&format!("# {key}: "))).map(str::to_owned).collect()
        };
        assert!(text.starts_with("# "), "{file}: the first line must be a comment that describes the file");
        let refused = comments(&text, "refused");
        assert_eq!(
            folder == "refused",
            !refused.is_empty(),
            "{file}: only manifests in refused/ have `# refused:`, and each must have it"
        );
        let mut names = Vec::new();
        let documents = text.split("\n---\n").map(|document| {
            let object: Value =
                serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{file}: invalid YAML: {error}"));
            let name = object["metadata"]["name"]
                .as_str()
                .unwrap_or_else(|| panic!("{file}: a document has no name"))
                .to_owned();
            let is_new = !names.contains(&name);
            names.push(name);
            let by = match &comments(document, "by")[..] {
                [] if is_new => Verb::Create,
                [] => Verb::Replace,
                [verb] => Verb::read(verb).unwrap_or_else(|| panic!("{file}: unknown verb in `# by: {verb}`")),
                _ => panic!("{file}: more than one `# by:` above a document"),
            };
            Document { by, warned: comments(document, "warned"), object }
        });
        let documents = documents.collect();
        Self { file, refused, documents }
    }
}

/// The manifests in `folder`, in the order of their names.
pub fn manifests(folder: &str) -> Vec<Manifest> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(directory().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder}/ is empty");
    paths.iter().map(|path| Manifest::read(folder, path)).collect()
}

/// One row of `addresses.yaml`, for one channel and one role.
pub struct AddressCase {
    /// The channel, in the spelling of the API.
    pub channel: String,
    /// `contact` or `proxy`.
    pub role: &'static str,
    /// The address, padded to the `length` of the row.
    pub address: String,
    /// The expected text of the refusal; `None` if the address is admitted.
    pub refused: Option<String>,
    /// The canonical spelling in the refusal, if it contains one.
    pub write: Option<String>,
}

impl AddressCase {
    /// The spec of a conversation that has the address on its side, and a valid address on the other.
    pub fn spec(&self) -> Value {
        let Self { channel, role, address, .. } = self;
        let proxy = match (*role, channel.as_str()) {
            ("proxy", _) => address,
            (_, "SMS" | "WhatsApp" | "RCS") => "+15017122661",
            (_, "Email") => "desk@example.org",
            _ => "desk",
        };
        let contact = (*role == "contact").then(|| json!({"address": address}));
        without_nulls(&json!({"channel": channel, "contact": contact, "proxy": {"address": proxy}}))
    }
}

/// The CRD of conversations with the rules of addresses and times that it had before those of `addresses.yaml`.
pub fn former_conversation_crd() -> Value {
    let mut crd = serde_json::to_value(switchboard::api::conversation_crd().unwrap()).unwrap();
    let former: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(directory().join("former-rules.yaml")).unwrap()).unwrap();
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    for rule in schema["spec"]["x-kubernetes-validations"].as_array_mut().unwrap() {
        if let Some((code, _)) = rule["message"].as_str().unwrap().split_once(':')
            && let Some(former) = former["spec"].get(code)
        {
            *rule = json!({"rule": former, "message": rule["message"], "fieldPath": rule["fieldPath"]});
        }
    }
    schema["status"]["properties"]["reportedActivityTime"] = former["reportedActivityTime"].clone();
    crd
}

/// The rows of `addresses.yaml`, multiplied by their channels and roles.
pub fn addresses() -> Vec<AddressCase> {
    let mut cases = Vec::new();
    for row in rows("addresses.yaml") {
        let text = |key: &str| row.get(key).map(|value| value.as_str().unwrap().to_owned());
        let pattern = text("address").unwrap();
        let address = row.get("length").map_or(pattern.clone(), |length| {
            let length = usize::try_from(length.as_u64().unwrap()).unwrap();
            pattern.replace('…', &"a".repeat(length + 1 - pattern.chars().count()))
        });
        let roles = match text("role").as_deref() {
            None => vec!["contact", "proxy"],
            Some("contact") => vec!["contact"],
            Some("proxy") => vec!["proxy"],
            Some(role) => panic!("unknown role {role}"),
        };
        for channel in row["channels"].as_array().unwrap() {
            for &role in &roles {
                cases.push(AddressCase {
                    channel: channel.as_str().unwrap().to_owned(),
                    role,
                    address: address.clone(),
                    refused: text("refused"),
                    write: text("write"),
                });
            }
        }
    }
    cases
}

/// Parses an address of a row.
pub fn parse_address(channel: &str, role: &str, address: &str) -> Result<Address, InvalidAddress> {
    let channel: Channel = serde_json::from_value(json!(channel)).unwrap();
    let role = if role == "contact" { Role::Contact } else { Role::Proxy };
    Address::parse(channel, role, address)
}

/// One row of `durations.yaml`.
pub struct DurationCase {
    /// The duration as text.
    pub duration: String,
    /// Its milliseconds, or the expected text of the refusal.
    pub meaning: Result<u64, String>,
}

/// The rows of `durations.yaml`.
pub fn durations() -> Vec<DurationCase> {
    let case = |row: &Value| DurationCase {
        duration: row["duration"].as_str().unwrap().to_owned(),
        meaning: match (row["milliseconds"].as_u64(), row["refused"].as_str()) {
            (Some(milliseconds), None) => Ok(milliseconds),
            (None, Some(refused)) => Err(refused.to_owned()),
            _ => panic!("{row}: needs either `milliseconds` or `refused`"),
        },
    };
    rows("durations.yaml").iter().map(case).collect()
}

/// The rows of `managers.yaml`: the metadata, and the tool that manages it, if one does.
pub fn managers() -> Vec<(Value, Option<String>)> {
    let manager = |row: &Value| row.get("manager").map(|manager| manager.as_str().unwrap().to_owned());
    let metadata = |row: &Value| json!({"labels": row.get("labels"), "annotations": row.get("annotations")});
    rows("managers.yaml").iter().map(|row| (without_nulls(&metadata(row)), manager(row))).collect()
}

/// The rows of `instants.yaml`: the instant, and the expected texts of the refusal; `None` if it is admitted.
pub fn instants() -> Vec<(String, Option<Vec<String>>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let refused = |row: &Value| row.get("refused").map(|words| words.as_array().unwrap().iter().map(text).collect());
    rows("instants.yaml").iter().map(|row| (text(&row["instant"]), refused(row))).collect()
}

/// `value` without null fields, which are equal to absent ones.
pub fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            fields.map(|(key, value)| (key.clone(), without_nulls(value))).collect::<serde_json::Map<_, _>>().into()
        }
        _ => value.clone(),
    }
}

fn rows(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(directory().join(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}
