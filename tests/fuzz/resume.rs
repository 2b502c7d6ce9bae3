//! Scripts of random bytes for the resume core (`src/ottoscaler/src/logs/resume_model.rs`). Of the
//! program it takes the pure files only, so that it builds in seconds.
#![no_main]
#![allow(dead_code)]

#[path = "../../src/ottoscaler/src/logs/checkpoint.rs"]
mod checkpoint;
#[path = "../../src/ottoscaler/src/logs/line.rs"]
mod line;
#[path = "../../src/ottoscaler/src/logs/resume_model.rs"]
mod resume_model;

libfuzzer_sys::fuzz_target!(|script: &[u8]| resume_model::run(script));
