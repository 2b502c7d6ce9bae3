//! The code that `docs/clients.md` shows is code of the clients that the tests run.
use std::{collections::BTreeSet, fs};

use crate::source;

const CLIENTS: [&str; 3] = [
    "tests/clients/go/main.go",
    "tests/nest/src/client.ts",
    "tests/partners/src/bin/stock-client.rs",
];

#[test]
fn the_snippets_for_clients_are_lines_of_tested_programs() {
    let read = |path: &str| fs::read_to_string(source::checkout().join(path)).unwrap();
    let programs = CLIENTS.map(read).concat();
    let lines: BTreeSet<&str> = programs.lines().map(str::trim).collect();
    let page = read("docs/clients.md");
    let mut fences = page.split("```").skip(1).step_by(2);
    let mut shown = 0;
    let unknown: Vec<&str> = fences
        .by_ref()
        .flat_map(|block| block.lines().skip(1))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .inspect(|_| shown += 1)
        .filter(|line| !lines.contains(line))
        .collect();
    assert!(shown > 20, "only {shown} lines are shown");
    assert!(unknown.is_empty(), "no tested client has: {unknown:#?}");
}
