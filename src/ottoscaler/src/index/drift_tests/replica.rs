//! A replica: an index and the two watches that feed it, run event by event.
use std::collections::BTreeSet;

use kube::Resource;

use super::{
    super::{Index, PodFeed, TaskFeed},
    Counts,
    server::{Event, Kind, Server, is_broken, is_terminal, uid},
};
use crate::{cluster::watch::WatchHandler, domain::unread::Unread};

pub(super) fn projected<H: WatchHandler<K>, K>(all: Vec<K>) -> Vec<H::Item> {
    all.into_iter().filter_map(H::project).collect()
}

/// Returns the projected objects of a list and those that cannot be decoded.
pub(super) fn listed<H, K>(all: Vec<K>) -> (Vec<H::Item>, Vec<Unread>)
where
    K: Resource<DynamicType = ()>,
    H: WatchHandler<K>,
{
    let (broken, all): (Vec<K>, Vec<K>) = all.into_iter().partition(|o| is_broken(o.meta()));
    (projected::<H, _>(all), broken.iter().map(unread).collect())
}

fn unread<K: Resource<DynamicType = ()>>(object: &K) -> Unread {
    let meta = object.meta();
    Unread {
        kind: K::kind(&()),
        name: meta.name.as_deref().unwrap().into(),
        uid: uid(meta).to_owned(),
        version: meta.resource_version.as_ref().unwrap().parse().unwrap(),
        ..Unread::default()
    }
}

/// A watch that behaves as in `cluster/watch.rs`, run event by event.
struct Watch<H> {
    handler: H,
    /// The version up to which it has received all changes; without one, it lists next.
    from: Option<u64>,
}

impl<H> Watch<H> {
    fn new(handler: H) -> Self {
        Self {
            handler,
            from: None,
        }
    }

    /// Takes one step; returns false when there is nothing to receive.
    fn step<K>(&mut self, kind: &Kind<K>, version: u64, seen: &mut Counts) -> bool
    where
        K: Resource<DynamicType = ()> + Clone,
        H: WatchHandler<K>,
    {
        let Some(from) = self.from else {
            let (all, unread) = listed::<H, _>(kind.list());
            self.handler.replace(all, unread, version);
            self.from = Some(version);
            seen.relists += 1;
            return true;
        };
        match kind.after(from) {
            Err(_) => {
                self.from = None;
                seen.gone_410 += 1;
                true
            }
            Ok(None) => {
                // A bookmark.
                self.from = Some(version);
                self.handler.synced_to(version);
                false
            }
            Ok(Some((at, event))) => {
                match event {
                    Event::Applied(object) if is_broken(object.meta()) => {
                        self.handler.apply_unread(unread(&object));
                        seen.unread += 1;
                    }
                    Event::Deleted(object) if is_broken(object.meta()) => {
                        self.handler.delete_unread(unread(&object));
                    }
                    Event::Applied(object) => self.handler.apply(object),
                    Event::Deleted(object) => self.handler.delete(object),
                }
                self.from = Some(at);
                self.handler.synced_to(at);
                seen.told += 1;
                true
            }
        }
    }
}

pub(super) struct Replica {
    pub(super) index: Index,
    tasks: Watch<TaskFeed>,
    pods: Watch<PodFeed>,
    /// The pods whose end the watch has reported, by uid.
    pub(super) ended: BTreeSet<String>,
}

impl Replica {
    pub(super) fn new() -> Self {
        let index = Index::default();
        Self {
            tasks: Watch::new(TaskFeed(index.clone())),
            pods: Watch::new(PodFeed(index.clone())),
            ended: BTreeSet::new(),
            index,
        }
    }

    pub(super) fn step(&mut self, tasks: bool, server: &Server, seen: &mut Counts) -> bool {
        if tasks {
            return self.tasks.step(&server.tasks, server.version, seen);
        }
        if let Some(Ok(Some((_, event)))) = self.pods.from.map(|v| server.pods.after(v)) {
            let (Event::Applied(pod) | Event::Deleted(pod)) = event;
            if is_terminal(&pod) {
                self.ended.insert(uid(&pod.metadata).to_owned());
            }
        }
        let before = self.index.read().tombstone_count();
        let more = self.pods.step(&server.pods, server.version, seen);
        let after = self.index.read().tombstone_count();
        seen.tombstones += after.saturating_sub(before);
        more
    }
}
