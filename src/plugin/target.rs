//! A conversation on the command line: `NAME` or `NAMESPACE/NAME`, as switchboard's messages name one.

use std::str::FromStr;

/// What kubectl writes before a name with `-o name`. No namespace has a dot in its name.
const KUBECTL_TYPE: &str = "conversation.switchboard.dev";

/// A conversation on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its namespace, if it is named.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = match text.split_once('/') {
            None => (None, text),
            Some((KUBECTL_TYPE, name)) => (None, name),
            Some((namespace, name)) => (Some(namespace), name),
        };
        if !is_name(name) || !namespace.is_none_or(|namespace| is_name(namespace) && !namespace.contains('.')) {
            return Err("must be NAME or NAMESPACE/NAME of a conversation".to_owned());
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

/// Whether `text` can be the name of an object, so that it can stand in the path of a request.
fn is_name(text: &str) -> bool {
    let is_inner = |letter: char| matches!(letter, 'a'..='z' | '0'..='9' | '-' | '.');
    let is_end = |letter: char| matches!(letter, 'a'..='z' | '0'..='9');
    text.len() <= 253 && text.chars().all(is_inner) && text.starts_with(is_end) && text.ends_with(is_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_is_a_name_with_or_without_its_namespace() {
        let target = |namespace: Option<&str>| Target { namespace: namespace.map(str::to_owned), name: "alice".into() };
        for (text, expected) in [
            ("alice", target(None)),
            ("conversation.switchboard.dev/alice", target(None)),
            ("sales/alice", target(Some("sales"))),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in
            ["", "/alice", "sales/", "a/b/c", "Alice", "alice?watch=true", "../alice", "..", "sales/..", "a.b/alice"]
        {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }
}
