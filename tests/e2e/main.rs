//! Ottoscaler on real clusters. `make test` brings them up and names them; a test
//! without its cluster fails.
#![expect(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "tests")]

mod clients;
mod contenders;
mod delayed;
mod fake;
mod faults;
mod janitor;
mod node;
mod processes;
mod proxy;
mod saturation;
mod server;
mod size;
mod support;
mod tasks;
mod windows;
