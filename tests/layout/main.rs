//! Checks how the sources of `src/` are laid out: imports between files of different
//! modules form no circle, files stay short, and each constant says why it has its value.
#![expect(clippy::unwrap_used)]
mod constants;
mod snippets;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use source::{Crate, File, crates};

/// The longest file, in lines of production code, and how many files may exceed the second
/// bound: a reader keeps no more in mind.
const LONGEST: usize = 500;
const LONG: usize = 400;
const FEW: usize = 10;
/// The median of all files.
const MEDIAN: usize = 150;

#[test]
fn files_of_different_modules_import_in_one_direction() {
    let (mut edges, mut circles) = (0, vec![]);
    for krate in crates() {
        let graph = imports(&krate);
        edges += graph.values().map(BTreeSet::len).sum::<usize>();
        circles
            .extend(circle(&graph).map(|files| format!("{}: {}", krate.name, files.join(" → "))));
    }
    assert!(edges > 100, "only {edges} imports were read");
    assert!(circles.is_empty(), "circles:\n{}", circles.join("\n"));
}

#[test]
fn files_are_short() {
    let all = crates();
    let mut lengths: Vec<(usize, String)> = all
        .iter()
        .flat_map(|krate| {
            krate
                .files
                .values()
                .map(|f| (f.lines, f.path.display().to_string()))
        })
        .collect();
    lengths.sort_unstable();
    assert!(
        lengths.len() > 100,
        "only {} files were read",
        lengths.len()
    );
    let median = lengths[lengths.len() / 2].0;
    assert!(median <= MEDIAN, "the median file has {median} lines");
    let above =
        |bound| -> Vec<&(usize, String)> { lengths.iter().filter(|(n, _)| *n > bound).collect() };
    assert!(
        above(LONGEST).is_empty(),
        "above {LONGEST} lines: {:#?}",
        above(LONGEST)
    );
    assert!(
        above(LONG).len() <= FEW,
        "above {LONG} lines: {:#?}",
        above(LONG)
    );
}

#[test]
fn a_circle_is_found() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in edges {
            graph
                .entry((*from).to_owned())
                .or_default()
                .insert((*to).to_owned());
        }
        graph
    };
    assert_eq!(circle(&graph(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
    let found = circle(&graph(&[("x", "a"), ("a", "b"), ("b", "c"), ("c", "a")]));
    assert_eq!(found.unwrap(), ["a", "b", "c", "a"]);
}

#[test]
fn a_constant_says_why_it_has_its_value() {
    let all = constants::constants(&crates());
    assert!(all.len() > 150, "only {} constants were read", all.len());
    let silent: Vec<_> = all.iter().filter(|c| c.reason.is_empty()).collect();
    let names: Vec<String> = silent.iter().map(|c| c.is_named()).collect();
    assert!(names.is_empty(), "without documentation: {names:#?}");
}

#[test]
fn the_table_of_constants_is_that_of_the_sources() {
    let file = source::checkout().join("docs/constants.md");
    let text = fs::read_to_string(&file).unwrap();
    let begin = text.find("| constant |").unwrap();
    let table = constants::table(&constants::constants(&crates()));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, format!("{}{table}", &text[..begin])).unwrap();
        return;
    }
    let (new, old): (BTreeSet<_>, BTreeSet<_>) =
        (table.lines().collect(), text[begin..].lines().collect());
    let added: Vec<_> = new.difference(&old).collect();
    let gone: Vec<_> = old.difference(&new).collect();
    assert!(
        text[begin..] == table,
        "docs/constants.md is not what the sources say (`make tables` writes it)\n\
         missing there: {added:#?}\nnot in the sources: {gone:#?}"
    );
}

/// Returns which file of a crate imports from which other. A module and its own submodules
/// belong together and may name each other.
fn imports(krate: &Crate) -> BTreeMap<String, BTreeSet<String>> {
    let related = |a: &str, b: &str| {
        let within =
            |outer: &str, inner: &str| outer.is_empty() || inner.starts_with(&format!("{outer}::"));
        within(a, b) || within(b, a)
    };
    let targets = |(module, file): (&String, &File)| {
        let named = file.paths.iter().filter_map(|path| krate.file_of(path));
        let others = named.filter(|to| *to != module && !related(to, module));
        (module.clone(), others.cloned().collect())
    };
    krate.files.iter().map(targets).collect()
}

/// Returns a circle of the graph, if it has one, from a node back to the same node.
fn circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    graph
        .keys()
        .find_map(|start| walk(graph, start, &mut vec![], &mut done))
}

fn walk(
    graph: &BTreeMap<String, BTreeSet<String>>,
    node: &str,
    path: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(at) = path.iter().position(|seen| seen == node) {
        let mut found = path.split_off(at);
        found.push(node.to_owned());
        return Some(found);
    }
    if !done.contains(node) {
        path.push(node.to_owned());
        for next in graph.get(node).into_iter().flatten() {
            if let Some(found) = walk(graph, next, path, done) {
                return Some(found);
            }
        }
        path.pop();
        done.insert(node.to_owned());
    }
    None
}
