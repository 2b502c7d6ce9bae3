//! The file of the callers changes under a running replica.
#![expect(clippy::unwrap_used)]
use std::time::Duration;

use ring::digest::{SHA256, digest};
use tokio::time::sleep;

use super::*;
use crate::args::Options;

fn line(name: &str, token: &str) -> String {
    let hash = digest(&SHA256, token.as_bytes());
    let hash: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("{name} scaler {hash}\n")
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_taken_and_a_wrong_one_changes_nothing_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("callers");
    std::fs::write(&path, line("ci", "old")).unwrap();
    let policy = Arc::new(Options::from_lookup(&|_| None).unwrap().worker);
    let file = CallersFile::open(path.clone(), policy).unwrap();
    let stop = CancellationToken::new();
    let steps = async {
        let settled = async |wanted: (bool, bool, i64)| {
            loop {
                let callers = file.current();
                let knows = |token| callers.of_token(token).is_some();
                if (knows("old"), knows("new"), file.0.invalid().get()) == wanted {
                    return;
                }
                sleep(Duration::from_secs(1)).await;
            }
        };
        settled((true, false, 0)).await;
        // Half of the new content.
        let both = line("ci", "old") + &line("ci", "new");
        std::fs::write(&path, &both[..both.len() - 9]).unwrap();
        settled((true, false, 1)).await;
        std::fs::write(&path, &both).unwrap();
        settled((true, true, 0)).await;
        std::fs::remove_file(&path).unwrap();
        settled((true, true, 1)).await;
        std::fs::write(&path, line("ci", "new")).unwrap();
        settled((false, true, 0)).await;
        stop.cancel();
    };
    let all = async { tokio::join!(file.watch(&stop), steps) };
    tokio::time::timeout(Duration::from_secs(600), all)
        .await
        .unwrap();
}

#[test]
fn a_replica_does_not_start_without_its_callers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("callers");
    let policy = Arc::new(Options::from_lookup(&|_| None).unwrap().worker);
    let missing = CallersFile::open(path.clone(), policy.clone()).unwrap_err();
    assert!(missing.to_string().contains("CALLERS_FILE"), "{missing}");
    std::fs::write(&path, "ci scaler\n").unwrap();
    let wrong = CallersFile::open(path, policy).unwrap_err();
    assert!(wrong.to_string().contains("line 1"), "{wrong}");
}
