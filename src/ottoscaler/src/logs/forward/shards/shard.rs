//! The checkpoints of one shard, and which of them are stored; pure.
use std::{collections::HashMap, sync::Arc};

use super::{super::checkpoint::Checkpoint, text};

#[derive(Debug, Default)]
pub(super) struct Shard {
    /// By the pod's uid.
    checkpoints: HashMap<Arc<str>, Checkpoint>,
    /// Counts the changes that are to be stored.
    changes: u64,
    /// How many of them the stored text has.
    stored: u64,
}

/// A log's start is where whoever knows no checkpoint begins, too.
fn is_worth_storing(checkpoint: &Checkpoint) -> bool {
    checkpoint.progress() > Checkpoint::start(0).progress()
}

/// What a shard held at a moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    checkpoints: Vec<(Arc<str>, Checkpoint)>,
    changes: u64,
}

impl Snapshot {
    pub(super) fn text(&self) -> String {
        text::encode(self.checkpoints.iter().map(|(uid, c)| (&**uid, c)))
    }
}

impl Shard {
    pub(super) fn get(&self, uid: &str) -> Option<&Checkpoint> {
        self.checkpoints.get(uid)
    }

    /// Takes a checkpoint that a former leader stored.
    pub(super) fn adopt(&mut self, uid: String, checkpoint: Checkpoint) {
        let known = self.checkpoints.entry(uid.into());
        known
            .and_modify(|known| {
                if known.progress() < checkpoint.progress() {
                    *known = checkpoint.clone();
                }
            })
            .or_insert(checkpoint);
    }

    /// A session begins at that checkpoint.
    pub(super) fn begin(&mut self, uid: &str, from: &Checkpoint) {
        if !self.checkpoints.contains_key(uid) {
            self.checkpoints.insert(uid.into(), from.clone());
        }
    }

    /// A session has come to that checkpoint. Those of pods that are gone are not kept.
    pub(super) fn note(&mut self, uid: &str, checkpoint: &Checkpoint) {
        if let Some(known) = self.checkpoints.get_mut(uid)
            && known != checkpoint
        {
            known.clone_from(checkpoint);
            self.changes += 1;
        }
    }

    /// Removes the checkpoints of all other pods.
    pub(super) fn retain(&mut self, is_live: impl Fn(&str) -> bool) {
        let gone = self.checkpoints.extract_if(|uid, _| !is_live(uid));
        let stored = gone.filter(|(_, checkpoint)| is_worth_storing(checkpoint));
        self.changes += u64::from(stored.count() > 0);
    }

    /// What is to be written, if anything changed.
    pub(super) fn unstored(&self) -> Option<Snapshot> {
        (self.changes > self.stored).then(|| Snapshot {
            checkpoints: self
                .checkpoints
                .iter()
                .filter(|(_, c)| is_worth_storing(c))
                .map(|(uid, c)| (uid.clone(), c.clone()))
                .collect(),
            changes: self.changes,
        })
    }

    pub(super) fn stored(&mut self, snapshot: &Snapshot) {
        self.stored = snapshot.changes;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    fn upto(next: u64) -> Checkpoint {
        Checkpoint {
            next,
            ..Checkpoint::start(0)
        }
    }

    #[test]
    fn what_changed_is_written_once_and_what_changes_meanwhile_again() {
        let mut shard = Shard::default();
        shard.begin("u", &upto(1));
        assert!(shard.unstored().is_none(), "a log's start needs no write");
        shard.note("u", &upto(5));
        let first = shard.unstored().unwrap();
        shard.note("u", &upto(6));
        shard.stored(&first);
        assert_eq!(first.text(), "u 0 0 5\n");
        let second = shard.unstored().unwrap();
        shard.note("u", &upto(6));
        shard.stored(&second);
        assert_eq!(second.text(), "u 0 0 6\n");
        assert!(shard.unstored().is_none());
    }

    #[test]
    fn a_pod_that_is_gone_leaves_its_shard() {
        let mut shard = Shard::default();
        shard.adopt("old".into(), upto(7));
        shard.adopt("other".into(), upto(8));
        shard.begin("new", &upto(1));
        shard.retain(|uid| uid != "old");
        let text = shard.unstored().unwrap();
        assert_eq!(text.text(), "other 0 0 8\n");
        shard.stored(&text);
        shard.retain(|uid| uid != "new");
        assert!(shard.unstored().is_none(), "it was not stored");
        shard.retain(|_| false);
        // Its session may still offer its last lines.
        shard.note("new", &upto(9));
        assert_eq!(shard.get("new"), None);
        assert_eq!(shard.unstored().unwrap().text(), "");
    }

    #[test]
    fn of_two_stored_checkpoints_of_a_pod_the_further_one_counts() {
        let mut shard = Shard::default();
        for next in [3, 9, 5] {
            shard.adopt("u".into(), upto(next));
        }
        assert_eq!(shard.get("u"), Some(&upto(9)));
        // Nor does the session begin anew.
        shard.begin("u", &upto(1));
        assert_eq!(shard.get("u"), Some(&upto(9)));
    }
}
