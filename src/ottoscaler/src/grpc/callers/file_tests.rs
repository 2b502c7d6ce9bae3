//! Files of callers, right and wrong.
#![expect(clippy::unwrap_used)]
use super::*;
use crate::args::Options;

fn policy() -> Policy {
    Options::from_lookup(&|_| None).unwrap().worker
}

fn parse(text: &str) -> Result<StaticCallers, FileError> {
    StaticCallers::parse(text.as_bytes(), &policy())
}

fn sha256(token: &str) -> String {
    let hash = digest(&SHA256, token.as_bytes());
    hash.as_ref().iter().map(|b| format!("{b:02X}")).collect()
}

#[test]
fn a_caller_has_two_tokens_while_they_are_rotated() {
    let (old, new, other) = (sha256("old"), sha256("new"), sha256("other"));
    let text = format!("# callers\n\nci  scaler {old}\nci scaler {new}\nops admin {other}\n");
    let callers = parse(&text).unwrap();
    for (token, found) in [
        ("old", Some(("ci", Role::Scaler))),
        ("new", Some(("ci", Role::Scaler))),
        ("other", Some(("ops", Role::Admin))),
        ("Old", None),
        ("", None),
    ] {
        assert_eq!(callers.of_token(token), found, "{token}");
    }
}

#[test]
fn a_role_is_narrowed_and_others_stay_as_they_are() {
    let text = format!(
        "ci scaler {}\nrole scaler ALLOWED_IMAGES=registry/ci/*, busybox\n\
         role scaler ALLOWED_COMMANDS=make *\n",
        sha256("t")
    );
    let callers = parse(&text).unwrap();
    let policy = callers.policy(Role::Scaler).unwrap();
    let images = &policy.allowed["ALLOWED_IMAGES"];
    assert!(images.allows("registry/ci/a:1") && images.allows("busybox"));
    assert!(!images.allows("registry/other:1"));
    let commands = &policy.allowed["ALLOWED_COMMANDS"];
    assert!(commands.allows("make test") && !commands.allows("sh"));
    assert!(callers.policy(Role::Admin).is_none());
}

#[test]
fn a_file_that_is_not_whole_or_not_sound_is_refused_with_its_line_and_without_its_content() {
    let (a, b, c) = (sha256("a"), sha256("b"), sha256("c"));
    let mut refused = 0;
    for (text, line) in [
        (String::new(), None),
        ("# nobody\n".to_owned(), None),
        (format!("ci scaler {a}"), None),
        (format!("ci scaler {}\n", &a[..63]), Some(1)),
        (format!("ci scaler {a}0\n"), Some(1)),
        (format!("ci scaler g{}\n", &a[1..]), Some(1)),
        (format!("ci scaler é{}\n", &a[2..]), Some(1)),
        (format!("ci root {a}\n"), Some(1)),
        (format!("ci scaler {a} x\n"), Some(1)),
        ("ci scaler\n".to_owned(), Some(1)),
        (format!("ci scaler {a}\nci admin {b}\n"), Some(2)),
        (format!("ci scaler {a}\nops admin {a}\n"), Some(2)),
        (
            format!("ci scaler {a}\nci scaler {b}\n\nci scaler {c}\n"),
            Some(4),
        ),
        ("certificate x root\n".to_owned(), Some(1)),
        (
            "certificate x admin\ncertificate x viewer\n".to_owned(),
            Some(2),
        ),
        ("role scaler ALLOWED_SECRET=x\n".to_owned(), Some(1)),
        ("role scaler MAX_WORKER_CPU=1\n".to_owned(), Some(1)),
        ("role root ALLOWED_IMAGES=x\n".to_owned(), Some(1)),
        ("role scaler ALLOWED_IMAGES\n".to_owned(), Some(1)),
        (format!("role admin {a}\n"), Some(1)),
    ] {
        let error = parse(&text).map(|_| ()).unwrap_err();
        let found = match &error {
            FileError::Line(n, _) => Some(*n),
            _ => None,
        };
        assert_eq!(found, line, "{text:?}: {error}");
        assert!(!error.to_string().contains(&a[..8]), "{error}");
        refused += 1;
    }
    assert_eq!(refused, 20);
    let error = StaticCallers::parse(b"\xff\n", &policy()).map(|_| ());
    assert_eq!(error.unwrap_err(), FileError::NotText);
}
