//! A file that grows, line by line.
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom},
    path::Path,
};

/// A line that is being written comes in pieces, a letter too: it is kept until it
/// is whole.
#[derive(Debug)]
pub struct Tail<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: BufRead> Tail<R> {
    pub fn new(reader: R) -> Self {
        let line = Vec::new();
        Self { reader, line }
    }

    /// The next line, with its end; None while there is no whole one.
    pub fn line(&mut self) -> io::Result<Option<&[u8]>> {
        if self.line.ends_with(b"\n") {
            self.line.clear();
        }
        self.reader.read_until(b'\n', &mut self.line)?;
        Ok(self.line.ends_with(b"\n").then_some(&self.line))
    }
}

/// Opens a file at the first line that begins at or after `from`, in bytes.
///
/// # Errors
/// The file cannot be read.
pub fn open_at(path: &Path, from: u64) -> io::Result<BufReader<File>> {
    let mut file = BufReader::new(File::open(path)?);
    // A line that begins there follows the end of another.
    file.seek(SeekFrom::Start(from.saturating_sub(1)))?;
    if from > 0 {
        file.skip_until(b'\n')?;
    }
    Ok(file)
}

/// What a file has from there on; a last line that is still being written is left out.
///
/// # Errors
/// The file cannot be read.
pub fn read_from(path: &Path, from: u64) -> io::Result<String> {
    let mut file = open_at(path, from)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn a_line_is_told_once_it_is_whole_though_a_letter_came_in_two() {
        let text = "first\nhalb fünf\n".as_bytes();
        let half = text.len() - "nf\n".len() - 1;
        let mut tail = Tail::new(VecDeque::from(text[..half].to_vec()));
        assert_eq!(tail.line().unwrap(), Some(&b"first\n"[..]));
        assert!(std::str::from_utf8(&text[..half]).is_err());
        assert_eq!(tail.line().unwrap(), None);
        tail.reader.extend(&text[half..]);
        assert_eq!(tail.line().unwrap(), Some("halb fünf\n".as_bytes()));
        assert_eq!(tail.line().unwrap(), None);
    }

    #[test]
    fn a_file_is_read_from_a_line_to_the_last_whole_one() {
        let path = std::env::temp_dir().join(format!("read-from-{}", std::process::id()));
        std::fs::write(&path, "one\ntwo\nthr").unwrap();
        let read = |from| read_from(&path, from).unwrap();
        let got = [0, 1, 4, 5, 8, 99].map(read);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(got, ["one\ntwo\n", "two\n", "two\n", "", "", ""]);
    }
}
