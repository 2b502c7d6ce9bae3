//! What a line printer really printed: a file on the node per container.
//!
//! Each line of the file is `<stream> <text>`, written after the text went out;
//! the last is `end <exit code>` or `killed`.
use std::{fs, io, path::Path};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Truth {
    /// The pod that printed.
    pub pod: String,
    pub lines: Vec<Line>,
    /// None while printing, or when it was killed without warning.
    pub exit: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub stream: String,
    pub text: String,
}

/// The file of a pod's container.
pub fn file_name(pod: &str) -> String {
    format!("{pod}.truth")
}

/// Reads every truth file of a folder.
///
/// # Errors
/// The folder or a file cannot be read.
pub fn read_all(dir: &Path) -> io::Result<Vec<Truth>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if let Some(pod) = name.strip_suffix(".truth") {
            all.push(parse(pod, &fs::read_to_string(&path)?));
        }
    }
    all.sort_by(|a, b| a.pod.cmp(&b.pod));
    Ok(all)
}

pub fn parse(pod: &str, text: &str) -> Truth {
    let mut truth = Truth {
        pod: pod.to_owned(),
        ..Truth::default()
    };
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("end", code)) => truth.exit = code.parse().ok(),
            Some((stream @ ("stdout" | "stderr"), text)) => {
                truth.lines.push(Line {
                    stream: stream.to_owned(),
                    text: text.to_owned(),
                });
            }
            _ => {}
        }
    }
    truth
}
