//! Which waiting workers get the free places: the highest priority first; among
//! equals the repository that has the fewest of its share; within it the oldest
//! task.
//!
//! What holds: a queue is what the last plans asked for and nothing else, so it
//! can be dropped at any time; a repository with one worker gets the next free
//! place, however many another one has waiting.
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque},
    sync::Arc,
};

/// A worker's next pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt {
    pub index: u32,
    pub attempt: u32,
}

/// A task's workers that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub repository: Arc<str>,
    pub priority: i32,
    /// When the task was made (Unix seconds).
    pub since: i64,
    pub attempts: VecDeque<Attempt>,
}

/// What a repository has of the places, and its weight (at least 1).
#[derive(Debug, Clone, Copy)]
pub struct Share {
    pub taken: usize,
    pub weight: u32,
}

/// A worker whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picked {
    pub task: Arc<str>,
    pub repository: Arc<str>,
    pub attempt: Attempt,
}

type Task = Arc<str>;
type Level = BTreeMap<Arc<str>, BTreeSet<(i64, Task)>>;

#[derive(Debug, Default)]
pub struct Queue {
    tasks: HashMap<Task, Waiting>,
    /// The same tasks by priority, repository and age.
    levels: BTreeMap<Reverse<i32>, Level>,
}

impl Queue {
    /// What a task's plan asks for, instead of what it asked for before.
    pub fn set(&mut self, task: &Task, waiting: Waiting) {
        self.remove(task);
        if waiting.attempts.is_empty() {
            return;
        }
        self.levels
            .entry(Reverse(waiting.priority))
            .or_default()
            .entry(waiting.repository.clone())
            .or_default()
            .insert((waiting.since, task.clone()));
        self.tasks.insert(task.clone(), waiting);
    }

    pub fn remove(&mut self, task: &Task) {
        let Some(old) = self.tasks.remove(task) else {
            return;
        };
        let key = Reverse(old.priority);
        let Some(level) = self.levels.get_mut(&key) else {
            return;
        };
        if let Some(tasks) = level.get_mut(&old.repository) {
            tasks.remove(&(old.since, task.clone()));
            if tasks.is_empty() {
                level.remove(&old.repository);
            }
        }
        if level.is_empty() {
            self.levels.remove(&key);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Workers of a task that wait.
    pub fn waiting(&self, task: &Task) -> usize {
        self.tasks.get(task).map_or(0, |w| w.attempts.len())
    }

    /// Takes at most `places` workers out, each for the repository that has the
    /// least of its share then.
    pub fn pick(&mut self, places: usize, share: impl Fn(&str) -> Share) -> Vec<Picked> {
        let mut picked: Vec<Picked> = Vec::new();
        while picked.len() < places {
            let Some((priority, level)) = self.levels.first_key_value() else {
                break;
            };
            let priority = *priority;
            let mut heap: BinaryHeap<Reverse<(Load, Arc<str>)>> = level
                .keys()
                .map(|repository| {
                    let Share { taken, weight } = share(repository);
                    // Those picked from a higher priority are taken too.
                    let more = picked.iter().filter(|p| p.repository == *repository);
                    let load = Load {
                        taken: taken + more.count(),
                        weight: weight.max(1),
                    };
                    Reverse((load, repository.clone()))
                })
                .collect();
            while picked.len() < places {
                let Some(Reverse((mut load, repository))) = heap.pop() else {
                    break;
                };
                let Some((task, attempt)) = self.next_of(priority, &repository) else {
                    continue;
                };
                picked.push(Picked {
                    task,
                    repository: repository.clone(),
                    attempt,
                });
                load.taken += 1;
                heap.push(Reverse((load, repository)));
            }
        }
        picked
    }

    /// The next worker of a repository at a priority.
    fn next_of(
        &mut self,
        priority: Reverse<i32>,
        repository: &Arc<str>,
    ) -> Option<(Task, Attempt)> {
        let level = self.levels.get(&priority)?;
        let (_, task) = level.get(repository)?.first()?.clone();
        let waiting = self.tasks.get_mut(&task)?;
        let attempt = waiting.attempts.pop_front()?;
        if waiting.attempts.is_empty() {
            self.remove(&task);
        }
        Some((task, attempt))
    }
}

/// Ordered by `taken / weight`.
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
            queue.set(&Arc::from(*task), waiting.clone());
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
        let picked = queue.pick(places, share);
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
        let task: Task = "t".into();
        queue.set(&task, waiting("r", 3, 1, 1));
        assert_eq!(queue.waiting(&task), 1);
        assert_eq!(picked(&mut queue, 9, &[]), ["t-1"]);
        queue.set(&task, waiting("r", 0, 1, 1));
        queue.remove(&task);
        assert!(queue.is_empty() && picked(&mut queue, 9, &[]).is_empty());
    }

    proptest! {
        /// Everything that waits is picked once, in the end.
        #[test]
        fn nothing_is_lost_or_picked_twice(
            tasks in prop::collection::vec((0u8..4, 0i32..3, 0i64..5, 0u32..6), 0..12),
            places in 1usize..7,
        ) {
            let mut queue = Queue::default();
            let mut wanted = BTreeSet::new();
            for (n, (repository, priority, since, workers)) in tasks.iter().enumerate() {
                let name: Task = Arc::from(format!("t{n}"));
                queue.set(&name, waiting(&format!("r{repository}"), *priority, *since, *workers));
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
