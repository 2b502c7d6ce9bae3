//! Follows the file of CALLERS=static.
//!
//! Invariant: the callers are those of the last valid content that was seen. Content that cannot
//! be read or parsed changes nothing; it is logged once, and the gauge shows it until it is mended.
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, atomic::AtomicI64},
    time::Duration,
};

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::file::{FileError, StaticCallers};
use crate::domain::template::Policy;

/// The time between two looks at the file. The kubelet takes longer to bring a changed Secret.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// A `CallersFileError` says why the callers are not known at the start.
#[derive(Debug, thiserror::Error)]
pub enum CallersFileError {
    #[error(
        "CALLERS_FILE: {path:?} cannot be read ({error}); mount the Secret of the callers there"
    )]
    Read { path: PathBuf, error: io::Error },
    #[error("CALLERS_FILE: {path:?} is not valid: {error} (docs/callers.md)")]
    Parse { path: PathBuf, error: FileError },
}

/// A `CallersFile` is the file of CALLERS=static.
#[derive(Debug)]
pub(super) struct CallersFile {
    path: PathBuf,
    policy: Arc<Policy>,
    /// Written by [`CallersFile::watch`], read by each call.
    current: RwLock<Arc<StaticCallers>>,
    /// The content at the start.
    first: Vec<u8>,
    invalid: Gauge<i64, AtomicI64>,
}

impl CallersFile {
    /// Reads the file.
    ///
    /// # Errors
    /// Returns an error if it cannot be read or is not valid.
    pub(super) fn open(path: PathBuf, policy: Arc<Policy>) -> Result<Self, CallersFileError> {
        let first = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Err(CallersFileError::Read { path, error }),
        };
        let callers = match StaticCallers::parse(&first, &policy) {
            Ok(callers) => callers,
            Err(error) => return Err(CallersFileError::Parse { path, error }),
        };
        Ok(Self {
            path,
            policy,
            current: RwLock::new(Arc::new(callers)),
            first,
            invalid: Gauge::default(),
        })
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "ottoscaler_callers_file_invalid",
            "1 while the file of the callers is not valid and the last valid one holds",
            self.invalid.clone(),
        );
    }

    /// Returns the callers of the last valid content.
    pub(super) fn current(&self) -> Arc<StaticCallers> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes changes of the file until `stop` is cancelled.
    pub(super) async fn watch(&self, stop: &CancellationToken) {
        let mut seen = Ok(self.first.clone());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(POLL_INTERVAL) => {}
            }
            let found = read(&self.path).await;
            if found != seen {
                self.take(&found);
                seen = found;
            }
        }
    }

    /// Replaces the callers if the content is valid.
    fn take(&self, found: &Result<Vec<u8>, io::ErrorKind>) {
        let parsed = match found {
            Ok(bytes) => {
                StaticCallers::parse(bytes, &self.policy).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match parsed {
            Ok(callers) => {
                tracing::info!(
                    callers = callers.count(),
                    "the file of the callers was read"
                );
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                *current = Arc::new(callers);
                self.invalid.set(0);
            }
            Err(error) => {
                tracing::warn!(
                    path = %self.path.display(),
                    %error,
                    "the file of the callers is not valid, and the last valid one holds"
                );
                self.invalid.set(1);
            }
        }
    }
}

/// Reads a file without holding up the runtime.
async fn read(path: &Path) -> Result<Vec<u8>, io::ErrorKind> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(path));
    match read.await {
        Ok(read) => read.map_err(|error| error.kind()),
        Err(_) => Err(io::ErrorKind::Other),
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
