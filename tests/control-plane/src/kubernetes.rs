//! The versions of Kubernetes that are pinned for the API server, and the requested one. It builds nothing.

use std::{env, fmt, ptr};

use crate::{
    Error,
    tools::{CONTROL_PLANE, Module, OLDER_API_SERVERS},
};

/// The environment variable that selects the minor version of the API server, as in `1.33`.
pub const VARIABLE: &str = "SWITCHBOARD_KUBERNETES";

/// A version of Kubernetes whose API server is pinned here. Displayed in full: `1.33.13`.
#[derive(Clone, Copy)]
pub struct Kubernetes(&'static Module);

impl Kubernetes {
    /// The version of all other components, and of the API server unless another version is requested.
    #[must_use]
    pub fn current() -> Self {
        Self(&CONTROL_PLANE)
    }

    /// All versions, the oldest first.
    pub fn all() -> impl Iterator<Item = Self> {
        OLDER_API_SERVERS.iter().map(Self).chain([Self::current()])
    }

    /// The version that the environment variable [`VARIABLE`] requests, if it is set.
    pub fn asked_for() -> Result<Option<Self>, Error> {
        match env::var_os(VARIABLE) {
            Some(minor) if !minor.is_empty() => Self::of_minor(&minor.to_string_lossy()).map(Some),
            _ => Ok(None),
        }
    }

    /// The version with this minor (`1.33`).
    pub fn of_minor(minor: &str) -> Result<Self, Error> {
        Self::all().find(|version| version.minor() == minor).ok_or_else(|| Error::UnknownKubernetes {
            asked_for: minor.to_owned(),
            available: Self::all().map(Self::minor).collect::<Vec<_>>().join(", "),
        })
    }

    /// Its minor version: `1.33`.
    #[must_use]
    pub fn minor(self) -> &'static str {
        let version = self.0.kubernetes();
        version.rsplit_once('.').map_or(version, |(minor, _)| minor)
    }

    pub(crate) fn module(self) -> &'static Module {
        self.0
    }
}

impl fmt::Display for Kubernetes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.kubernetes())
    }
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Kubernetes {self}")
    }
}

impl PartialEq for Kubernetes {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self.0, other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Kubernetes;

    #[test]
    fn minor_finds_its_version() {
        assert_eq!(Kubernetes::of_minor("1.31").unwrap().to_string(), "1.31.14");
        assert_eq!(Kubernetes::of_minor("1.37").unwrap(), Kubernetes::current());
    }

    #[test]
    fn unknown_version_is_rejected_with_the_available_ones() {
        for asked_for in ["1.30", "1.3", "31", "1.31.14", "latest"] {
            let error = Kubernetes::of_minor(asked_for).unwrap_err().to_string();
            let expected = format!(
                "no API server of Kubernetes {asked_for:?} is pinned here; available versions: 1.31, 1.33, 1.35, 1.37"
            );
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn versions_are_sorted_and_end_with_the_current_one() {
        let minors = Kubernetes::all().map(|version| version.minor()[2..].parse::<u32>().unwrap());
        assert!(minors.is_sorted());
        assert_eq!(Kubernetes::all().last(), Some(Kubernetes::current()));
    }
}
