//! Reads the constants that are numbers or durations, and makes the table of docs/constants.md.
use std::fmt::Write as _;

use syn::{
    Attribute, Expr, ExprLit, ItemConst, Lit, Meta, Type,
    visit::{self, Visit},
};

use crate::source::Crate;

/// The types whose constants are in the table.
const NUMBERS: [&str; 14] = [
    "Backoff", "Duration", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64",
    "u128", "usize",
];

pub(crate) struct Constant {
    name: String,
    value: String,
    /// Its documentation, on one line.
    pub(crate) reason: String,
    /// Its file, from the root of the repository.
    pub(crate) file: String,
}

impl Constant {
    pub(crate) fn is_named(&self) -> String {
        format!("{} ({})", self.name, self.file)
    }
}

/// Returns the constants of all files, in the order of files and, within one, of lines.
pub(crate) fn constants(crates: &[Crate]) -> Vec<Constant> {
    let mut files: Vec<_> = crates.iter().flat_map(|k| k.files.values()).collect();
    files.sort_by_key(|file| &file.path);
    let mut all = vec![];
    for file in files {
        let path = file.path.to_string_lossy();
        let mut reader = Reader {
            file: path.rsplit_once("/../../").map_or(&*path, |(_, p)| p),
            found: &mut all,
        };
        reader.visit_file(&syn::parse_file(&std::fs::read_to_string(&file.path).unwrap()).unwrap());
    }
    all
}

/// Returns the table, a row for each constant.
pub(crate) fn table(constants: &[Constant]) -> String {
    let mut text =
        String::from("| constant | value | what it is and why | where |\n|---|---|---|---|\n");
    for c in constants {
        let file = c.file.trim_start_matches("src/");
        writeln!(
            text,
            "| `{}` | {} | {} | `{file}` |",
            c.name, c.value, c.reason
        )
        .unwrap();
    }
    text
}

struct Reader<'a> {
    file: &'a str,
    found: &'a mut Vec<Constant>,
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !crate::source::is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_const(&mut self, item: &'ast ItemConst) {
        let is_number = |ty: &Type| {
            matches!(ty, Type::Path(p) if p.path.segments.last()
                .is_some_and(|s| NUMBERS.iter().any(|n| s.ident == n)))
        };
        if is_number(&item.ty) && !crate::source::is_for_tests(&item.attrs) {
            self.found.push(Constant {
                name: item.ident.to_string(),
                value: value(&item.expr),
                reason: documentation(&item.attrs),
                file: self.file.to_owned(),
            });
        }
    }
}

/// Returns a value as a reader writes it: `50 ms`, `1,024`, or the expression itself.
fn value(expr: &Expr) -> String {
    match expr {
        Expr::Call(call) if call.args.len() == 1 => {
            let unit = match source(&call.func).as_str() {
                "Duration::from_secs" => "s",
                "Duration::from_millis" => "ms",
                "Duration::from_micros" => "µs",
                _ => return format!("`{}`", source(expr)),
            };
            format!("{} {unit}", value(&call.args[0]))
        }
        Expr::Struct(of) => {
            let fields: Vec<String> = of.fields.iter().map(|f| value(&f.expr)).collect();
            fields.join(" to ")
        }
        Expr::Lit(ExprLit {
            lit: Lit::Int(_), ..
        }) => source(expr).replace('_', ","),
        Expr::Lit(_) => source(expr),
        Expr::Path(path) => format!("`{}`", path.path.segments.last().unwrap().ident),
        _ => format!("`{}`", source(expr)),
    }
}

fn source(of: &impl syn::spanned::Spanned) -> String {
    let text = of.span().source_text().unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn documentation(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|a| match &a.meta {
        Meta::NameValue(doc) if doc.path.is_ident("doc") => match &doc.value {
            Expr::Lit(ExprLit {
                lit: Lit::Str(line),
                ..
            }) => Some(line.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    });
    let text = lines.collect::<Vec<_>>().join(" ");
    // A link to another item is text here.
    text.replace("[`", "`")
        .replace("`]", "`")
        .replace('|', "\\|")
}
