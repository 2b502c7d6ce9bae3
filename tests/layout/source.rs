//! Reads the crates of `src/`: their files, how long each is, and which paths it names.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, ItemMod, ItemUse, UseTree,
    spanned::Spanned as _,
    visit::{self, Visit},
};

/// A crate by the paths of its modules (`""` is the root, `a::b` a file below it).
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) files: BTreeMap<String, File>,
}

pub(crate) struct File {
    pub(crate) path: PathBuf,
    /// Lines without the tests at its end.
    pub(crate) lines: usize,
    /// What production code names of its own crate, as paths from the root.
    pub(crate) paths: Vec<String>,
}

impl Crate {
    /// Returns the module of the file that a path leads into.
    pub(crate) fn file_of(&self, path: &str) -> Option<&String> {
        let mut rest = path;
        loop {
            if let Some((module, _)) = self.files.get_key_value(rest) {
                return Some(module);
            }
            rest = rest.rsplit_once("::").map_or("", |(head, _)| head);
        }
    }
}

/// The checkout that is tested; another one may have built this program.
pub(crate) fn checkout() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by `cargo test`");
    Path::new(&package).join("../..")
}

pub(crate) fn crates() -> Vec<Crate> {
    let root = checkout().join("src");
    let mut found = vec![];
    for entry in fs::read_dir(&root).unwrap() {
        let folder = entry.unwrap().path();
        let mut files = BTreeMap::new();
        collect(&folder.join("src"), &[], &mut files);
        if !files.is_empty() {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            found.push(Crate { name, files });
        }
    }
    found
}

fn collect(folder: &Path, above: &[String], files: &mut BTreeMap<String, File>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for path in entries.map(|entry| entry.unwrap().path()) {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if stem.contains("test") {
            continue;
        }
        let mut module = above.to_vec();
        if !["lib", "main", "mod"].contains(&stem.as_str()) {
            module.push(stem);
        }
        if path.is_dir() {
            collect(&path, &module, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.insert(module.join("::"), read(path, &module));
        }
    }
}

fn read(path: PathBuf, module: &[String]) -> File {
    let text = fs::read_to_string(&path).unwrap();
    let parsed = syn::parse_file(&text).unwrap();
    let tests = parsed
        .items
        .iter()
        .find(|item| matches!(item, Item::Mod(m) if m.content.is_some() && is_for_tests(&m.attrs)));
    let lines = tests.map_or_else(|| text.lines().count(), |t| t.span().start().line - 1);
    let mut names = Names {
        module,
        paths: vec![],
    };
    names.visit_file(&parsed);
    File {
        path,
        lines,
        paths: names.paths,
    }
}

pub(crate) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|a| {
        let is_test = |list: &syn::MetaList| list.tokens.to_string().contains("test");
        a.path().is_ident("cfg") && a.meta.require_list().is_ok_and(is_test)
    })
}

struct Names<'a> {
    module: &'a [String],
    paths: Vec<String>,
}

impl Names<'_> {
    /// Takes a path as it is written. One that begins with no keyword may begin with a
    /// module beside, which `file_of` finds out.
    fn add(&mut self, segments: &[String]) {
        let mut from = self.module.to_vec();
        let mut rest = segments;
        match rest.first().map(String::as_str) {
            Some("crate") => {
                from.clear();
                rest = &rest[1..];
            }
            Some("self") => rest = &rest[1..],
            Some("super") => {
                while rest.first().is_some_and(|s| s == "super") {
                    from.pop();
                    rest = &rest[1..];
                }
            }
            _ => return,
        }
        from.extend_from_slice(rest);
        self.paths.push(from.join("::"));
    }

    fn add_tree(&mut self, above: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| [above, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            UseTree::Name(name) => self.add(&with(&name.ident)),
            UseTree::Rename(name) => self.add(&with(&name.ident)),
            UseTree::Glob(_) => self.add(above),
            UseTree::Group(group) => group.items.iter().for_each(|t| self.add_tree(above, t)),
        }
    }
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.add(&segments);
        visit::visit_path(self, path);
    }
}
