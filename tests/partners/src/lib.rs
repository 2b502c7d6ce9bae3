//! Shared by the partner programs.
