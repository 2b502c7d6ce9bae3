//! Follows files that something else writes: mounted Secrets, rotated certificates.
//!
//! Invariants:
//! - The files of a set are parsed together, and their value is taken whole or not at all.
//! - The value is that of the last valid content that was seen. Content that cannot be read or
//!   parsed changes nothing; it is logged once, and the gauge shows it until it is mended.
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// The time between two looks at the files. The kubelet takes longer to bring a changed Secret.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// A `MountedFile` is one file of a set.
#[derive(Debug, Clone)]
pub struct MountedFile {
    /// The setting that names it.
    pub setting: &'static str,
    pub path: PathBuf,
}

/// A `MountedFilesError` says why the value of a set is not known at the start.
#[derive(Debug, thiserror::Error)]
pub enum MountedFilesError {
    #[error("{setting}: {path:?} cannot be read ({error}); is the Secret mounted there?")]
    Read {
        setting: &'static str,
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{settings}: {error}")]
    Parse { settings: String, error: String },
}

/// What a set of files holds, in the order of the files.
pub type Contents = Vec<Vec<u8>>;

/// Makes the value of a set of files, or says what is wrong with them.
type Parse<T> = Box<dyn Fn(&Contents) -> Result<T, String> + Send + Sync>;

/// A `MountedFiles` follows a set of files whose value is a `T`.
pub struct MountedFiles<T> {
    files: Vec<MountedFile>,
    parse: Parse<T>,
    current: watch::Sender<Arc<T>>,
    /// The contents at the start.
    first: Contents,
    invalid: Gauge<i64, AtomicI64>,
}

impl<T> fmt::Debug for MountedFiles<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("MountedFiles");
        text.field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> MountedFiles<T> {
    /// Reads the files. An error of `parse` must not quote them, for they may hold secrets.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or the set is not valid.
    pub fn open(
        files: Vec<MountedFile>,
        parse: impl Fn(&Contents) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, MountedFilesError> {
        let mut first = Vec::new();
        for MountedFile { setting, path } in &files {
            let read = std::fs::read(path);
            first.push(read.map_err(|error| MountedFilesError::Read {
                setting,
                path: path.clone(),
                error,
            })?);
        }
        let parsed = parse(&first).map_err(|error| MountedFilesError::Parse {
            settings: settings(&files),
            error,
        })?;
        Ok(Self {
            files,
            parse: Box::new(parse),
            current: watch::Sender::new(Arc::new(parsed)),
            first,
            invalid: Gauge::default(),
        })
    }

    /// Returns a gauge that is 1 while the files are not valid.
    pub fn invalid(&self) -> Gauge<i64, AtomicI64> {
        self.invalid.clone()
    }

    /// Returns the value of the last valid content.
    pub fn current(&self) -> Arc<T> {
        self.current.borrow().clone()
    }

    /// Returns a receiver of the values to come.
    pub fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.current.subscribe()
    }

    /// Takes changes of the files until `stop` is cancelled.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut seen = Ok(self.first.clone());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(POLL_INTERVAL) => {}
            }
            let found = self.read().await;
            if found != seen {
                self.take(&found);
                seen = found;
            }
        }
    }

    /// Replaces the value if the content is valid.
    fn take(&self, found: &Result<Contents, String>) {
        let settings = settings(&self.files);
        let parsed = found.as_ref().map_err(Clone::clone);
        match parsed.and_then(|contents| (self.parse)(contents)) {
            Ok(value) => {
                tracing::info!(settings, "changed files were read");
                self.current.send_replace(Arc::new(value));
                self.invalid.set(0);
            }
            Err(error) => {
                tracing::warn!(
                    settings,
                    error,
                    "changed files are not valid, and what they held before is in use"
                );
                self.invalid.set(1);
            }
        }
    }

    /// Reads the files without holding up the runtime.
    async fn read(&self) -> Result<Contents, String> {
        let paths: Vec<PathBuf> = self.files.iter().map(|file| file.path.clone()).collect();
        let read = move || {
            let read = |path: &PathBuf| std::fs::read(path).map_err(|error| told(path, &error));
            paths.iter().map(read).collect()
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|_| Err("the files were not read".to_owned()))
    }
}

fn told(path: &Path, error: &std::io::Error) -> String {
    format!("{} cannot be read: {}", path.display(), error.kind())
}

/// Names the settings of the files.
fn settings(files: &[MountedFile]) -> String {
    let names: Vec<&str> = files.iter().map(|file| file.setting).collect();
    names.join(", ")
}

#[cfg(test)]
#[path = "mounted_tests.rs"]
mod tests;
