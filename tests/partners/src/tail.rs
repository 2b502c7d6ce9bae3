//! A file that grows, line by line.
use std::io::{self, BufRead};

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
}
