//! The audit log of an API server: who called what, counted by somebody else than the one who called.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::error::{Error, Result};

/// What is logged: every call of a person or of a service account, when it has been answered.
const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- {level: None, userGroups: [system:apiserver]}
- {level: None, users: ['system:apiserver']}
- {level: Metadata}
";

/// A log that an API server writes.
pub struct AuditLog {
    policy: PathBuf,
    log: PathBuf,
    read: usize,
}

/// What was called, without who and when.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Whether the operator called.
    pub by_operator: bool,
    /// The verb, such as `create`.
    pub verb: String,
    /// The resource, such as `conversations/status`.
    pub resource: String,
}

impl Call {
    /// Whether something was stored by it.
    pub fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    verb: String,
    user: User,
    #[serde(rename = "requestURI")]
    request_uri: String,
    object_ref: Option<ObjectReference>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
struct ObjectReference {
    resource: String,
    subresource: Option<String>,
}

impl AuditLog {
    /// One that will be in this directory.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        let (policy, log) = (directory.join("audit-policy.yaml"), directory.join("audit.log"));
        fs::write(&policy, POLICY).map_err(Error::io("write", &policy))?;
        // What an earlier run left.
        fs::write(&log, "").map_err(Error::io("write", &log))?;
        Ok(Self { policy, log, read: 0 })
    }

    /// By these flags an API server writes it.
    pub fn flags(&self) -> Vec<String> {
        vec![
            format!("--audit-policy-file={}", self.policy.display()),
            format!("--audit-log-path={}", self.log.display()),
        ]
    }

    /// How often each call was made since the last time this was asked. What is asked only for show, as a dry run, is left out, and
    /// so are the reviews of tokens and rights, which store nothing.
    pub fn calls(&mut self) -> Result<BTreeMap<Call, usize>> {
        let text = fs::read_to_string(&self.log).map_err(Error::io("read", &self.log))?;
        // A line that is being written is left for the next time.
        let end = text.rfind('\n').map_or(self.read, |end| end + 1);
        let mut calls = BTreeMap::new();
        for line in text[self.read..end].lines() {
            let Entry { verb, user, request_uri, object_ref } = serde_json::from_str(line)?;
            let Some(ObjectReference { resource, subresource }) = object_ref else { continue };
            if request_uri.contains("dryRun=All") || resource.ends_with("reviews") {
                continue;
            }
            let resource = subresource.map_or(resource.clone(), |subresource| format!("{resource}/{subresource}"));
            let by_operator = user.username.starts_with("system:serviceaccount:");
            *calls.entry(Call { by_operator, verb, resource }).or_default() += 1;
        }
        self.read = end;
        Ok(calls)
    }
}
