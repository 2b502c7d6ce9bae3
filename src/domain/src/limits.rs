//! Defines bounds that names and records share.

/// The greatest number of workers that a task may have. As many rows fit into the size of a stored
/// task.
pub const MAX_TASK_WORKERS: u32 = 1_000;

/// The highest number of an attempt that is counted. No worker makes so many, and every sum
/// of attempts fits its type.
pub const MAX_ATTEMPT: u32 = 1_000_000;
