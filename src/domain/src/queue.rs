//! Decides which waiting workers get the free places: the highest priority first, among
//! equals the repository that has the least of its share, and within it the oldest task.
//!
//! Invariants:
//! - A queue holds what the last plans asked for and nothing else, so that it can be dropped
//!   at any time.
//! - A repository with one worker gets the next free place, however many workers of another
//!   one wait.
//! - A task is in one lane: the common one, or that of the [`Gate`] that holds it back. The
//!   caller says how many workers may leave each lane, so that a task that cannot go now
//!   holds back no other.
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque},
    sync::Arc,
};

/// An `Attempt` names a pod of a worker within its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt {
    /// The index of the worker, from 1.
    pub index: u32,
    /// The number of the attempt, from 1.
    pub attempt: u32,
}

/// A `Shape` is what a quota counts of a worker's pod: it gives the same answer to all pods
/// of one shape. Amounts are in thousandths of cores and of bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// The CPU request, in thousandths of cores.
    pub cpu_request: u128,
    /// The CPU limit, in thousandths of cores.
    pub cpu_limit: u128,
    /// The memory request, in thousandths of bytes.
    pub memory_request: u128,
    /// The memory limit, in thousandths of bytes.
    pub memory_limit: u128,
    /// The name of the PriorityClass.
    pub priority_class: Option<String>,
}

/// A `Gate` stands for all creates that would be refused for the same reason
/// ([`super::gates`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gate {
    /// All creates.
    All,
    /// The creates of all pods of one shape.
    Shape(Arc<Shape>),
    /// The creates of one task, by name.
    Task(Arc<str>),
    /// The create of one attempt of a task.
    Attempt(Arc<str>, Attempt),
}

/// A `Lane` is where a task waits: at the gate that holds it back, or in the common lane
/// (None) if nothing does.
pub type Lane = Option<Gate>;

/// A `Waiting` holds the workers of a task that wait for a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The repository of the task.
    pub repository: Arc<str>,
    /// The priority of the task; higher ones go first.
    pub priority: i32,
    /// The time at which the task was created, in Unix seconds.
    pub since: i64,
    /// The attempts that wait, in the order in which they get places.
    pub attempts: VecDeque<Attempt>,
}

/// A `Share` says how many places a repository has, and how many it is entitled to in
/// proportion to others.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// The number of places that the repository has.
    pub taken: usize,
    /// The weight of the repository. 0 counts as 1.
    pub weight: u32,
}

/// A `Picked` is a worker that gets a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picked {
    /// The name of the task.
    pub task: Arc<str>,
    /// The repository of the task.
    pub repository: Arc<str>,
    /// The attempt that gets the place.
    pub attempt: Attempt,
    /// The lane that the attempt waited in.
    pub lane: Lane,
}

type TaskName = Arc<str>;
/// The tasks of one priority by repository and age.
type ByRepository = BTreeMap<Arc<str>, BTreeSet<(i64, TaskName)>>;
/// The tasks of a lane by priority, repository and age.
type ByPriority = BTreeMap<Reverse<i32>, ByRepository>;

/// A `Queue` holds the workers that wait for a place.
#[derive(Debug, Default)]
pub struct Queue {
    tasks: HashMap<TaskName, (Waiting, Lane)>,
    /// The same tasks by lane. A lane is here only while it holds a task.
    lanes: HashMap<Lane, ByPriority>,
}

impl Queue {
    /// Replaces what a task's plan asked for before. A task with no attempts is removed.
    pub fn set(&mut self, task: &TaskName, waiting: Waiting, lane: Lane) {
        self.remove(task);
        if waiting.attempts.is_empty() {
            return;
        }
        self.lanes
            .entry(lane.clone())
            .or_default()
            .entry(Reverse(waiting.priority))
            .or_default()
            .entry(waiting.repository.clone())
            .or_default()
            .insert((waiting.since, task.clone()));
        self.tasks.insert(task.clone(), (waiting, lane));
    }

    /// Removes a task, and returns what it waited for and in which lane.
    pub fn remove(&mut self, task: &TaskName) -> Option<(Waiting, Lane)> {
        let (old, lane) = self.tasks.remove(task)?;
        let key = Reverse(old.priority);
        let levels = self.lanes.get_mut(&lane)?;
        if let Some(level) = levels.get_mut(&key) {
            if let Some(tasks) = level.get_mut(&old.repository) {
                tasks.remove(&(old.since, task.clone()));
                if tasks.is_empty() {
                    level.remove(&old.repository);
                }
            }
            if level.is_empty() {
                levels.remove(&key);
            }
        }
        if levels.is_empty() {
            self.lanes.remove(&lane);
        }
        Some((old, lane))
    }

    /// Moves a task to another lane. A task that does not wait is left alone.
    pub fn move_to(&mut self, task: &TaskName, lane: Lane) {
        if self.tasks.get(task).is_some_and(|(_, old)| *old != lane)
            && let Some((waiting, _)) = self.remove(task)
        {
            self.set(task, waiting, lane);
        }
    }

    /// Reports whether no worker waits.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Reports whether no task waits in the lane.
    pub fn is_lane_empty(&self, lane: &Lane) -> bool {
        !self.lanes.contains_key(lane)
    }

    /// Returns the tasks that wait in the lane.
    pub fn tasks_in(&self, lane: &Lane) -> Vec<TaskName> {
        let levels = self
            .lanes
            .get(lane)
            .into_iter()
            .flat_map(ByPriority::values);
        let tasks = levels.flat_map(ByRepository::values).flatten();
        tasks.map(|(_, task)| task.clone()).collect()
    }

    /// Returns how many workers of a task wait.
    pub fn waiting(&self, task: &TaskName) -> usize {
        self.tasks.get(task).map_or(0, |(w, _)| w.attempts.len())
    }

    /// Takes at most `places` workers out of the queue, and at most the given number out of
    /// each lane. Each place goes to the repository that has the least of its share at that
    /// moment.
    pub fn pick(
        &mut self,
        places: usize,
        mut lanes: Vec<(Lane, usize)>,
        share: impl Fn(&str) -> Share,
    ) -> Vec<Picked> {
        let mut picked: Vec<Picked> = Vec::new();
        // The places of each repository, those that were picked included.
        let mut loads: HashMap<Arc<str>, Load> = HashMap::new();
        while picked.len() < places {
            lanes.retain(|(lane, most)| *most > 0 && self.lanes.contains_key(lane));
            let first = |lane| Some(*self.lanes.get(lane)?.first_key_value()?.0);
            let Some(priority) = lanes.iter().filter_map(|(lane, _)| first(lane)).min() else {
                break;
            };
            let mut heap: BinaryHeap<Reverse<Turn>> = BinaryHeap::new();
            for (n, (lane, _)) in lanes.iter().enumerate() {
                let level = self.lanes.get(lane).and_then(|l| l.get(&priority));
                for (repository, tasks) in level.into_iter().flatten() {
                    let load = *loads.entry(repository.clone()).or_insert_with(|| {
                        let Share { taken, weight } = share(repository);
                        let weight = weight.max(1);
                        Load { taken, weight }
                    });
                    let since = tasks.first().map_or(0, |(since, _)| *since);
                    heap.push(Reverse((load, repository.clone(), since, n)));
                }
            }
            while picked.len() < places {
                let Some(Reverse((load, repository, since, n))) = heap.pop() else {
                    break;
                };
                let (lane, most) = &mut lanes[n];
                let Some(current) = loads.get_mut(&repository).filter(|_| *most > 0) else {
                    continue;
                };
                if load != *current {
                    // A worker of this repository was picked from another lane meanwhile.
                    heap.push(Reverse((*current, repository, since, n)));
                    continue;
                }
                let Some((task, attempt, since)) = self.next_of(lane, priority, &repository) else {
                    continue;
                };
                *most -= 1;
                current.taken += 1;
                heap.push(Reverse((*current, repository.clone(), since, n)));
                let lane = lane.clone();
                picked.push(Picked {
                    task,
                    repository,
                    attempt,
                    lane,
                });
            }
        }
        picked
    }

    /// Takes the next worker of a repository at a priority, and returns it with the age of
    /// the task that comes after it.
    fn next_of(
        &mut self,
        lane: &Lane,
        priority: Reverse<i32>,
        repository: &Arc<str>,
    ) -> Option<(TaskName, Attempt, i64)> {
        let tasks = self.lanes.get(lane)?.get(&priority)?.get(repository)?;
        let (since, task) = tasks.first()?.clone();
        let next = tasks.iter().nth(1).map_or(since, |(since, _)| *since);
        let (waiting, _) = self.tasks.get_mut(&task)?;
        let attempt = waiting.attempts.pop_front()?;
        if !waiting.attempts.is_empty() {
            return Some((task, attempt, since));
        }
        self.remove(&task);
        Some((task, attempt, next))
    }
}

/// A `Turn` orders the repositories of the lanes: what the repository has, the repository,
/// the creation time of its oldest task, and the number of the lane.
type Turn = (Load, Arc<str>, i64, usize);

/// A `Load` is what a repository has of its share. Loads are ordered by `taken / weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Load {
    taken: usize,
    weight: u32,
}

impl Ord for Load {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let crossed = |a: &Self, b: &Self| a.taken as u64 * u64::from(b.weight);
        crossed(self, other).cmp(&crossed(other, self))
    }
}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn waiting(repository: &str, priority: i32, since: i64, workers: u32) -> Waiting {
        Waiting {
            repository: repository.into(),
            priority,
            since,
            attempts: (1..=workers)
                .map(|index| Attempt { index, attempt: 1 })
                .collect(),
        }
    }

    fn queue(tasks: &[(&str, Waiting)]) -> Queue {
        let mut queue = Queue::default();
        for (task, waiting) in tasks {
            queue.set(&Arc::from(*task), waiting.clone(), None);
        }
        queue
    }

    fn picked(queue: &mut Queue, places: usize, taken: &[(&str, usize)]) -> Vec<String> {
        let share = |repository: &str| Share {
            taken: taken
                .iter()
                .find(|(r, _)| *r == repository)
                .map_or(0, |(_, n)| *n),
            weight: if repository == "heavy" { 3 } else { 1 },
        };
        let picked = queue.pick(places, vec![(None, usize::MAX)], share);
        picked
            .into_iter()
            .map(|p| format!("{}-{}", p.task, p.attempt.index))
            .collect()
    }

    #[test]
    fn one_worker_of_a_repository_is_next_though_another_has_ten_thousand() {
        let mut tasks = vec![("late", waiting("small", 0, 99, 1))];
        let names: Vec<String> = (0..10).map(|n| format!("big-{n}")).collect();
        tasks.extend(
            names
                .iter()
                .map(|n| (n.as_str(), waiting("big", 0, 1, 1_000))),
        );
        let mut queue = queue(&tasks);
        assert_eq!(picked(&mut queue, 1, &[("big", 500)]), ["late-1"]);
    }

    #[test]
    fn places_follow_the_weights() {
        let mut queue = queue(&[
            ("h", waiting("heavy", 0, 1, 100)),
            ("l", waiting("light", 0, 1, 100)),
        ]);
        let all = picked(&mut queue, 40, &[]);
        assert_eq!(all.iter().filter(|p| p.starts_with("h-")).count(), 30);
    }

    #[test]
    fn priority_comes_before_fairness_and_age_after_it() {
        let mut queue = queue(&[
            ("old", waiting("r", 0, 1, 1)),
            ("new", waiting("r", 0, 2, 1)),
            ("urgent", waiting("r", 5, 3, 2)),
            ("other", waiting("s", 0, 9, 1)),
        ]);
        assert_eq!(
            picked(&mut queue, 9, &[]),
            ["urgent-1", "urgent-2", "other-1", "old-1", "new-1"]
        );
        assert!(queue.is_empty());
    }

    #[test]
    fn a_task_asks_for_what_its_last_plan_said() {
        let mut queue = queue(&[("t", waiting("r", 0, 1, 5))]);
        let task: TaskName = "t".into();
        queue.set(&task, waiting("r", 3, 1, 1), None);
        assert_eq!(queue.waiting(&task), 1);
        assert_eq!(picked(&mut queue, 9, &[]), ["t-1"]);
        queue.set(&task, waiting("r", 0, 1, 1), None);
        queue.remove(&task);
        assert!(queue.is_empty() && picked(&mut queue, 9, &[]).is_empty());
    }

    proptest! {
        /// Each worker that waits is picked once in the end.
        #[test]
        fn nothing_is_lost_or_picked_twice(
            tasks in prop::collection::vec((0u8..4, 0i32..3, 0i64..5, 0u32..6), 0..12),
            places in 1usize..7,
        ) {
            let mut queue = Queue::default();
            let mut wanted = BTreeSet::new();
            for (n, (repository, priority, since, workers)) in tasks.iter().enumerate() {
                let name: TaskName = Arc::from(format!("t{n}"));
                queue.set(&name, waiting(&format!("r{repository}"), *priority, *since, *workers), None);
                wanted.extend((1..=*workers).map(|index| format!("t{n}-{index}")));
            }
            let mut seen = BTreeSet::new();
            while !queue.is_empty() {
                let some = picked(&mut queue, places, &[]);
                prop_assert!(!some.is_empty() && some.len() <= places);
                for pick in some {
                    prop_assert!(seen.insert(pick));
                }
            }
            prop_assert_eq!(seen, wanted);
        }
    }
}
