//! Bounds in the schema of a WorkerTask that several fields share.
//!
//! Invariants: the bounds are at least as wide as what a request may carry
//! ([`crate::request`]) and as what this version writes. Of phases, reasons and rows they
//! check only the form, because an older definition must accept what a newer version writes.
use schemars::{Schema, SchemaGenerator, json_schema};

use super::MAX_TASK_WORKERS;

/// The greatest number of characters of a task id, repository, commit and the like: that of a
/// request, in the definition of a WorkerTask.
pub(super) const TEXT: u32 = 256;
/// The greatest number of characters of a value of a map, and of the reason: that of a request.
pub(super) const VALUE: u32 = 32 * 1024;
/// The greatest number of entries of a map: that of a request.
const ENTRIES: u32 = 128;
/// The greatest number of workers. A newer version may have more of them than this one.
pub(super) const COUNT: u32 = 1_000_000;
/// The greatest number of entries of a table in a status. A newer version may keep more of them
/// than this one.
pub(super) const TABLE: u32 = 2_000;
/// The greatest number of characters of a reason or a message in a table. What is kept of them is
/// shorter; a newer version may keep more.
pub(super) const REASON: u32 = 1_024;

pub(super) fn texts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": ENTRIES,
        "additionalProperties": { "type": "string", "maxLength": VALUE },
    })
}

pub(super) fn indices(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_TASK_WORKERS,
        "items": { "type": "integer", "minimum": 1, "maximum": MAX_TASK_WORKERS },
    })
}

pub(super) fn request_ids(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "items": { "type": "string", "maxLength": TEXT },
    })
}

pub(super) fn nodes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": TABLE,
        "items": { "type": "string", "maxLength": 253 },
    })
}

pub(super) fn phase(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "default": "Pending",
        "description": "Pending, Running, Succeeded, Failed or Cancelled; a newer version may have more.",
        "maxLength": 32,
        "pattern": "^[A-Z][A-Za-z]*$",
    })
}
