//! Scripts of random bytes for the resume core (`src/ottoscaler/src/logs/forward/resume_model.rs`). Of the
//! program it takes the pure files only, so that it builds in seconds.
#![no_main]
#![allow(dead_code)]

#[path = "../../src/ottoscaler/src/logs/forward/checkpoint.rs"]
mod checkpoint;
#[path = "../../src/ottoscaler/src/logs/read/line.rs"]
mod line;
#[path = "../../src/ottoscaler/src/logs/read/position.rs"]
mod position;
#[path = "../../src/ottoscaler/src/logs/forward/resume_model.rs"]
mod resume_model;

/// Where those files look for each other.
mod logs {
    pub(crate) mod read {
        pub(crate) use crate::{line, position};
    }
}

libfuzzer_sys::fuzz_target!(|script: &[u8]| resume_model::run(script));
