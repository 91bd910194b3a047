//! The configured sources: their types, from a file, and their keys, from mounted Secrets. A changed Secret is taken up without a restart.

use super::source::{Keys, Source, SourceType};
use crate::secret_files::{self, POLL_INTERVAL, Unreadable};
use crate::telemetry::error_chain::ErrorChain;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::sleep;

/// Where the sources are configured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file that lists the sources.
    pub file: PathBuf,
    /// The directory with a directory of keys for each source.
    pub secrets: PathBuf,
}

/// A source in the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Listed {
    #[serde(rename = "type")]
    type_: SourceType,
    #[serde(rename = "publicURL")]
    public_url: Option<String>,
}

/// Why the sources cannot be used, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The file of the sources is not valid.
    #[error("{} is not valid: {source}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The keys of a source are not usable.
    #[error("the keys of source {name} in {} are not usable: {cause}", .path.display())]
    Keys {
        /// The name of the source.
        name: String,
        /// The directory.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
}

/// A source, and its current keys.
struct Configured {
    source: Source,
    /// `None` if they are not usable: then the source accepts nothing, and the others go on.
    keys: watch::Sender<Option<Arc<Keys>>>,
    /// Why they are not.
    error: watch::Sender<Option<String>>,
}

/// The sources that requests may come from.
#[derive(Clone)]
pub struct Sources {
    settings: Settings,
    by_name: Arc<BTreeMap<String, Configured>>,
}

impl Sources {
    /// Reads the file and the keys of every source.
    ///
    /// # Errors
    /// If a file cannot be read or is not valid.
    pub fn read(settings: Settings) -> Result<Self, Error> {
        let path = &settings.file;
        let text = std::fs::read_to_string(path).map_err(|source| Unreadable { path: path.clone(), source })?;
        let invalid = |source: Box<dyn std::error::Error + Send + Sync>| Error::Invalid { path: path.clone(), source };
        let listed: BTreeMap<String, Listed> =
            serde_saphyr::from_str(&text).map_err(|error| invalid(error.to_string().into()))?;
        let mut by_name = BTreeMap::new();
        for (name, Listed { type_, public_url }) in listed {
            let source = Source::new(type_, public_url.as_deref())
                .map_err(|error| invalid(format!("publicURL of source {name}: {error}").into()))?;
            let configured = Configured { source, keys: watch::Sender::new(None), error: watch::Sender::new(None) };
            configured.load(&settings.secrets, &name);
            by_name.insert(name, configured);
        }
        Ok(Self { settings, by_name: Arc::new(by_name) })
    }

    /// The source of this name, with its keys if they are usable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<(&Source, Option<Arc<Keys>>)> {
        self.by_name.get(name).map(|configured| (&configured.source, configured.keys.borrow().clone()))
    }

    /// Takes up changed Secrets until the process exits.
    pub async fn run(self) {
        loop {
            sleep(POLL_INTERVAL).await;
            for (name, configured) in self.by_name.as_ref() {
                configured.load(&self.settings.secrets, name);
            }
        }
    }
}

impl Configured {
    /// Takes up the keys of the source `name`. Keys that are not usable revoke the previous ones: somebody has removed them. Files that
    /// cannot be read do not, unless there are none.
    fn load(&self, secrets: &Path, name: &str) {
        let loaded = keys(secrets, name, self.source.type_());
        match loaded {
            Ok(keys) => {
                self.keys.send_replace(Some(Arc::new(keys)));
                if self.error.send_replace(None).is_some() {
                    tracing::info!(source = name, "the keys of the source are usable again");
                }
            }
            Err(error) => {
                let is_unreadable = matches!(error, Error::Unreadable(_));
                let error = ErrorChain(&error).to_string();
                // Once, and not at each attempt.
                if self.error.send_replace(Some(error.clone())).as_ref() != Some(&error) {
                    tracing::error!(source = name, error, "the keys of the source are not usable");
                }
                if !is_unreadable || !secrets.join(name).exists() {
                    self.keys.send_replace(None);
                }
            }
        }
    }
}

fn keys(secrets: &Path, name: &str, type_: SourceType) -> Result<Keys, Error> {
    let path = secrets.join(name);
    let files = secret_files::read(&path)?;
    Keys::of(type_, files).map_err(|error| Error::Keys { name: name.to_owned(), path, cause: error.to_string() })
}
