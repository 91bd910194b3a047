//! The audit log of an API server. It counts the calls of each user independently of the callers.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::error::{Error, Result};

/// Logs every answered call of a user or of a service account.
const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- {level: None, userGroups: [system:apiserver]}
- {level: None, users: ['system:apiserver']}
- {level: Metadata}
";

/// The log of an API server.
pub struct AuditLog {
    policy: PathBuf,
    log: PathBuf,
    read: usize,
}

/// A kind of call, without its user and its time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Whether the operator made the call.
    pub by_operator: bool,
    /// The verb, such as `create`.
    pub verb: String,
    /// The resource, such as `conversations/status`.
    pub resource: String,
}

impl Call {
    /// Whether the call stores an object.
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
    /// Prepares a log in this directory.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        let (policy, log) = (directory.join("audit-policy.yaml"), directory.join("audit.log"));
        fs::write(&policy, POLICY).map_err(Error::io("write", &policy))?;
        // Removes the log of an earlier run.
        fs::write(&log, "").map_err(Error::io("write", &log))?;
        Ok(Self { policy, log, read: 0 })
    }

    /// The flags with which an API server writes the log.
    pub fn flags(&self) -> Vec<String> {
        vec![
            format!("--audit-policy-file={}", self.policy.display()),
            format!("--audit-log-path={}", self.log.display()),
        ]
    }

    /// Counts the calls of each kind since the last call of this function. It ignores dry runs, and reviews of tokens and permissions,
    /// because they store nothing.
    pub fn calls(&mut self) -> Result<BTreeMap<Call, usize>> {
        let text = fs::read_to_string(&self.log).map_err(Error::io("read", &self.log))?;
        // An incomplete last line is read at the next call.
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
