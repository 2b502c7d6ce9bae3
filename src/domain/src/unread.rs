//! Objects that cannot be decoded beyond their metadata.
use std::{borrow::Cow, sync::Arc};

/// An `Unread` is an object of the API server that has a field which this version does not
/// understand, so that only its metadata is known.
///
/// What was known of the object before stays as it is, and nothing is decided about it until
/// it can be decoded again or is deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unread {
    /// The kind of the object: WorkerTask, Pod and the like.
    pub kind: Cow<'static, str>,
    /// The name of the object.
    pub name: Arc<str>,
    /// The uid of the object.
    pub uid: String,
    /// The resourceVersion of the object.
    pub version: u64,
    /// The name and the uid of the WorkerTask that owns the object, if one does.
    pub task: Option<(Arc<str>, Arc<str>)>,
    /// Names the field that is not understood and what was expected there. It never quotes
    /// what the field holds, which may be a secret.
    pub why: String,
}
