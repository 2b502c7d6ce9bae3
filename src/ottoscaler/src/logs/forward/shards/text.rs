//! The text of a shard: one line for each pod, its uid and its checkpoint; pure.
use super::super::checkpoint::Checkpoint;

/// The longest text of a shard, below the 1 MiB that the API server takes of a ConfigMap. It holds
/// the checkpoints of some 8,000 pods; those of more are left out.
const MAX_LENGTH: usize = 900 * 1024;

pub(super) fn encode<'a>(all: impl Iterator<Item = (&'a str, &'a Checkpoint)>) -> String {
    let mut text = String::new();
    for (uid, checkpoint) in all {
        let line = format!("{uid} {checkpoint}\n");
        if text.len() + line.len() > MAX_LENGTH {
            break;
        }
        text.push_str(&line);
    }
    text
}

/// What a text holds; anybody may have written it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) checkpoints: Vec<(String, Checkpoint)>,
    /// Lines that are no pod's checkpoint.
    pub(super) bad: usize,
}

pub(super) fn decode(text: &str) -> Decoded {
    let mut decoded = Decoded::default();
    for line in text.lines() {
        let entry = line
            .split_once(' ')
            .and_then(|(uid, rest)| Some((uid.to_owned(), rest.parse().ok()?)));
        match entry {
            Some(entry) => decoded.checkpoints.push(entry),
            None => decoded.bad += 1,
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn upto(next: u64) -> Checkpoint {
        Checkpoint {
            next,
            ..Checkpoint::start(0)
        }
    }

    #[test]
    fn a_line_that_is_no_checkpoint_spoils_no_other() {
        let text = "u1 0 0 7\ngarbage\n\nu2 0 0\n\u{0}\u{fffd} x\nu3 1 2 9 b - ff 1\n{\"json\": 1}";
        let decoded = decode(text);
        let uids: Vec<&str> = decoded.checkpoints.iter().map(|(u, _)| &**u).collect();
        assert_eq!((uids, decoded.bad), (vec!["u1", "u3"], 5));
        assert_eq!(decoded.checkpoints[0].1, upto(7));
    }

    #[test]
    fn a_text_stays_below_what_the_api_server_takes() {
        let far = "2147483647 1073741823 4503599627370495 a -9223372036854775808 ffffffffffffffff 18446744073709551615";
        let far: Checkpoint = far.parse().unwrap_or_else(|_| upto(1));
        let uid = "01234567-89ab-cdef-0123-456789abcdef";
        let of = |pods: usize| encode((0..pods).map(|_| (uid, &far)));
        // Of a sixteenth of 10,000 pods.
        assert!(of(625).len() < 100 * 1024, "{}", of(625).len());
        let full = of(20_000);
        assert!(full.len() <= MAX_LENGTH && full.ends_with('\n'));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_no_text_is_too_much(
            pods in prop::collection::vec(("[0-9a-f-]{1,36}", 1u64..1 << 50), 0..20),
            noise in ".{0,200}",
        ) {
            let all: Vec<(String, Checkpoint)> = pods.into_iter().map(|(u, n)| (u, upto(n))).collect();
            let text = encode(all.iter().map(|(u, c)| (&**u, c)));
            prop_assert_eq!(decode(&text), Decoded { checkpoints: all.clone(), bad: 0 });
            let decoded = decode(&(text + &noise));
            prop_assert!(decoded.checkpoints.starts_with(&all));
        }
    }
}
