//! Splits the bytes of a log into lines; pure.
//!
//! A line longer than [`MAX_LINE`] is cut, and its original length is kept.
use base64::Engine as _;
use serde::{Deserialize, Serialize};

/// The most bytes of a line's text. An entry must fit into gRPC's limit of 4 MiB for a message
/// even when it carries the original bytes as well.
pub(crate) const MAX_LINE: usize = 1024 * 1024;

/// A line as the kubelet serves it with timestamps on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// The timestamp as the node wrote it. It is empty for the rest of a line whose head was cut
    /// off.
    pub(crate) timestamp: String,
    /// The timestamp as Unix time in nanoseconds.
    pub(crate) nanos: Option<i64>,
    #[serde(with = "serde_bytes")]
    pub(crate) text: Vec<u8>,
    /// The length of the whole line in bytes, if it was cut.
    pub(crate) cut_from: Option<usize>,
}

/// Collects bytes until a line is whole.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    partial: Vec<u8>,
    length: usize,
}

impl Splitter {
    /// Takes bytes, and hands every line on that they complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Line)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.append(&bytes[..end]);
            bytes = &bytes[end + 1..];
            each(self.take());
        }
        self.append(bytes);
    }

    /// Returns the last line if it has no newline.
    pub(crate) fn finish(&mut self) -> Option<Line> {
        (self.length > 0).then(|| self.take())
    }

    fn append(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        // The timestamp and the blank after it come in addition to the text.
        let room = (MAX_LINE + 64).saturating_sub(self.partial.len());
        self.partial
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn take(&mut self) -> Line {
        let raw = std::mem::take(&mut self.partial);
        let length = std::mem::take(&mut self.length);
        parse(raw, length)
    }
}

fn parse(raw: Vec<u8>, length: usize) -> Line {
    let stamp = raw.iter().take(64).position(|b| *b == b' ').and_then(|at| {
        let text = std::str::from_utf8(&raw[..at]).ok()?;
        let time: jiff::Timestamp = text.parse().ok()?;
        let nanos = i64::try_from(time.as_nanosecond()).ok()?;
        Some((at + 1, text.to_owned(), nanos))
    });
    let (head, timestamp, nanos) = match stamp {
        Some((head, timestamp, nanos)) => (head, timestamp, Some(nanos)),
        None => (0, String::new(), None),
    };
    let full = length - head;
    let mut text = raw;
    text.drain(..head);
    let cut_from = (full > MAX_LINE).then_some(full);
    text.truncate(MAX_LINE);
    Line {
        timestamp,
        nanos,
        text,
        cut_from,
    }
}

impl Line {
    pub(crate) fn time(&self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::from_nanosecond(self.nanos?.into()).ok()
    }

    /// Returns a hash of the timestamp and the text.
    pub(crate) fn hash(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(self.timestamp.as_bytes());
        hash.update(b" ");
        hash.update(&self.text);
        hash.digest()
    }

    /// Returns the text for a protobuf string, and the original in base64 if it was not UTF-8.
    ///
    /// Together they stay below 4 MiB: replacement characters may take more room than the bytes
    /// that they stand for, and the text is cut then.
    pub(crate) fn message(&self) -> (String, Option<String>) {
        let (mut text, original) = match std::str::from_utf8(&self.text) {
            Ok(text) => (text.to_owned(), None),
            Err(_) => (
                String::from_utf8_lossy(&self.text).into_owned(),
                Some(base64::engine::general_purpose::STANDARD.encode(&self.text)),
            ),
        };
        text.truncate(text.floor_char_boundary(2 * MAX_LINE));
        if let Some(length) = self.cut_from {
            text.push_str(&format!(" … [cut, {length} bytes]"));
        }
        (text, original)
    }

    pub(crate) fn level(&self) -> &'static str {
        level(&self.text)
    }
}

/// Returns the level if the line states it as a JSON or logfmt `level` or as its first word,
/// and INFO otherwise.
fn level(text: &[u8]) -> &'static str {
    const LEVELS: [(&str, &str); 6] = [
        ("ERROR", "ERROR"),
        ("FATAL", "ERROR"),
        ("WARNING", "WARN"),
        ("WARN", "WARN"),
        ("DEBUG", "DEBUG"),
        ("INFO", "INFO"),
    ];
    let head = &text[..text.len().min(256)];
    let starts = |at: usize| {
        let word = head[at..].trim_ascii_start();
        LEVELS.iter().find(|(name, _)| {
            word.get(..name.len())
                .is_some_and(|w| w.eq_ignore_ascii_case(name.as_bytes()))
                && !word.get(name.len()).is_some_and(u8::is_ascii_alphanumeric)
        })
    };
    let after = |key: &[u8]| {
        head.windows(key.len())
            .position(|w| w == key)
            .map(|at| at + key.len())
    };
    let leading = usize::from(head.first() == Some(&b'['));
    let found = [
        after(b"\"level\":\""),
        after(b"\"level\": \""),
        after(b"level="),
        Some(leading),
    ];
    found
        .into_iter()
        .flatten()
        .find_map(starts)
        .map_or("INFO", |(_, level)| level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(chunks: &[&[u8]]) -> Vec<Line> {
        let mut splitter = Splitter::default();
        let mut all = Vec::new();
        for chunk in chunks {
            splitter.feed(chunk, |l| all.push(l));
        }
        all.extend(splitter.finish());
        all
    }

    #[test]
    fn a_line_has_the_nodes_timestamp() {
        let all = lines(&[b"2026-01-02T03:04:05.123456789Z hello world\n"]);
        assert_eq!(all[0].timestamp, "2026-01-02T03:04:05.123456789Z");
        assert_eq!(all[0].text, b"hello world");
        // Any offset.
        assert!(
            lines(&[b"2026-01-02T03:04:05.1+09:00 x\n"])[0]
                .nanos
                .is_some()
        );
    }

    #[test]
    fn carriage_returns_are_bytes_of_a_line_like_any_other() {
        let stamp = "2026-01-02T03:04:05.123456789Z";
        for text in ["crlf\r", "10%\r20%\r", "\r", "\ra", "a\r\r"] {
            let raw = format!("{stamp} {text}\n");
            let whole = &lines(&[raw.as_bytes()])[0];
            assert_eq!(whole.message(), (text.to_owned(), None));
            for at in 0..raw.len() {
                let (head, tail) = raw.as_bytes().split_at(at);
                assert_eq!(&lines(&[head, tail])[0], whole);
            }
        }
    }

    #[test]
    fn a_rest_without_a_timestamp_is_kept_whole() {
        assert_eq!(
            lines(&[b"rest of a line\n"])[0],
            Line {
                text: b"rest of a line".to_vec(),
                ..Line::default()
            }
        );
    }

    #[test]
    fn a_line_over_the_cap_is_cut_with_its_length() {
        let mut raw = b"2026-01-02T03:04:05Z ".to_vec();
        raw.resize(raw.len() + MAX_LINE + 7, b'x');
        let line = &lines(&[&raw])[0];
        assert_eq!(
            (line.text.len(), line.cut_from),
            (MAX_LINE, Some(MAX_LINE + 7))
        );
        assert!(
            line.message()
                .0
                .ends_with(&format!("[cut, {} bytes]", MAX_LINE + 7))
        );
    }

    #[test]
    fn what_is_no_utf8_keeps_its_original() {
        let line = Line {
            text: vec![b'a', 0xff],
            ..Line::default()
        };
        assert_eq!(
            line.message(),
            ("a\u{fffd}".to_owned(), Some("Yf8=".to_owned()))
        );
    }

    #[test]
    fn the_level_is_taken_where_it_is_plain() {
        for (text, level) in [
            ("ERROR: no", "ERROR"),
            ("[warn] x", "WARN"),
            ("{\"level\":\"debug\"}", "DEBUG"),
            ("ts=1 level=error", "ERROR"),
            ("information", "INFO"),
            ("the ERROR came late", "INFO"),
        ] {
            assert_eq!(super::level(text.as_bytes()), level, "{text}");
        }
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(text in "([a-z ]{0,9}\n){0,6}[a-z]{0,4}", cut in 0usize..60) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            prop_assert_eq!(lines(&[bytes]), lines(&[&bytes[..cut], &bytes[cut..]]));
        }
    }
}
