//! Says who calls, and decides what each caller may do.
pub(crate) mod peer;
