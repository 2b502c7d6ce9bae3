//! An object that cannot be decoded, as far as its metadata can.
use std::{borrow::Cow, sync::Arc};

/// An object of the API server of which this version does not understand a field.
///
/// It is known by its metadata only. What was known of it before stays as it is, and
/// nothing is decided about it until it can be decoded again, or is deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unread {
    /// The kind of the object: WorkerTask, Pod and the like.
    pub kind: Cow<'static, str>,
    pub name: Arc<str>,
    pub uid: String,
    /// Its resourceVersion.
    pub version: u64,
    /// Name and uid of the WorkerTask that owns it.
    pub task: Option<(Arc<str>, Arc<str>)>,
    /// Which field is not understood and what was expected there; never what it holds,
    /// which may be a secret.
    pub why: String,
}
