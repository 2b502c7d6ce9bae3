//! Follows the file of CALLERS=static.
use std::{path::PathBuf, sync::Arc};

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::file::StaticCallers;
use crate::{
    domain::template::Policy,
    mounted::{MountedFile, MountedFiles, MountedFilesError},
};

/// A `CallersFile` is the file of CALLERS=static.
#[derive(Debug)]
pub(super) struct CallersFile(MountedFiles<StaticCallers>);

impl CallersFile {
    /// Reads the file.
    ///
    /// # Errors
    /// Returns an error if it cannot be read or is not valid.
    pub(super) fn open(path: PathBuf, policy: Arc<Policy>) -> Result<Self, MountedFilesError> {
        let file = MountedFile {
            setting: "CALLERS_FILE",
            path,
        };
        let files = MountedFiles::open(vec![file], move |contents| {
            let bytes = contents.first().map_or(&[][..], Vec::as_slice);
            let parsed = StaticCallers::parse(bytes, &policy);
            parsed.map_err(|error| format!("{error} (docs/callers.md)"))
        })?;
        Ok(Self(files))
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "ottoscaler_callers_file_invalid",
            "1 while the file of the callers is not valid and the last valid one holds",
            self.0.invalid(),
        );
    }

    /// Returns the callers of the last valid content.
    pub(super) fn current(&self) -> Arc<StaticCallers> {
        self.0.current()
    }

    /// Takes changes of the file until `stop` is cancelled.
    pub(super) async fn watch(&self, stop: &CancellationToken) {
        self.0.run(stop).await;
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
