//! Files change under a running replica, as the kubelet and people change them.
#![expect(clippy::unwrap_used)]
use std::os::unix::fs::symlink;

use super::*;

/// The value is the text of both files, which must have the same first letter.
fn both(contents: &Contents) -> Result<String, String> {
    let [a, b] = &contents[..] else {
        return Err("not two".to_owned());
    };
    if a.first() == b.first() {
        Ok(String::from_utf8_lossy(&contents.concat()).into_owned())
    } else {
        Err("they do not belong together".to_owned())
    }
}

fn files(folder: &Path) -> Vec<MountedFile> {
    let file = |(setting, name)| MountedFile {
        setting,
        path: folder.join(name),
    };
    [("A_FILE", "a"), ("B_FILE", "b")].map(file).into()
}

/// Writes a version as the kubelet does: a new folder, to which `..data` is switched at once.
fn publish(mount: &Path, version: &str, a: &str, b: &str) {
    let folder = mount.join(version);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a"), a).unwrap();
    std::fs::write(folder.join("b"), b).unwrap();
    symlink(version, mount.join("..new")).unwrap();
    std::fs::rename(mount.join("..new"), mount.join("..data")).unwrap();
    for name in ["a", "b"] {
        let _ = symlink(format!("..data/{name}"), mount.join(name));
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_that_belongs_together_is_taken_and_nothing_else_changes_the_value() {
    let mount = tempfile::tempdir().unwrap();
    publish(mount.path(), "v1", "1a", "1b");
    let followed = MountedFiles::open(files(mount.path()), both).unwrap();
    let stop = CancellationToken::new();
    let steps = async {
        let settled = async |value: &str, invalid: i64| {
            while (followed.current().as_str(), followed.invalid().get()) != (value, invalid) {
                sleep(Duration::from_secs(1)).await;
            }
        };
        settled("1a1b", 0).await;
        let mut values = followed.subscribe();
        // Half of a change, as whoever copies files one by one leaves it for a while.
        publish(mount.path(), "v2", "2a", "1b");
        settled("1a1b", 1).await;
        publish(mount.path(), "v3", "2a", "2b");
        settled("2a2b", 0).await;
        assert!(values.has_changed().unwrap());
        assert_eq!(values.borrow_and_update().as_str(), "2a2b");
        std::fs::remove_file(mount.path().join("..data")).unwrap();
        settled("2a2b", 1).await;
        publish(mount.path(), "v4", "3a", "3b");
        settled("3a3b", 0).await;
        stop.cancel();
    };
    let all = async { tokio::join!(followed.run(&stop), steps) };
    tokio::time::timeout(Duration::from_secs(600), all)
        .await
        .unwrap();
}

#[test]
fn a_set_that_is_missing_or_wrong_at_the_start_is_an_error_with_its_setting() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), "1").unwrap();
    let missing = MountedFiles::open(files(folder.path()), both).unwrap_err();
    assert!(missing.to_string().starts_with("B_FILE: "), "{missing}");
    std::fs::write(folder.path().join("b"), "2").unwrap();
    let wrong = MountedFiles::open(files(folder.path()), both).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "A_FILE, B_FILE: they do not belong together"
    );
}
