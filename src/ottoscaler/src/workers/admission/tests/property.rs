//! A random API server, quota and load against the real admission.
use proptest::prelude::*;

use super::*;

/// What the API server does in a run of the property: who refuses when, in seconds.
#[derive(Debug, Clone)]
struct Play {
    /// Repository, priority, memory in units, workers, when it comes.
    tasks: Vec<(u8, i32, usize, u32, u64)>,
    /// From when on the quota has how many units.
    quota: Vec<(u64, usize)>,
    /// Kind, task, from, for how long.
    trouble: Vec<(u8, usize, u64, u64)>,
    /// How long a pod lives.
    lives: u64,
}

fn play() -> impl Strategy<Value = Play> {
    let task = (0u8..4, -2i32..3, 1usize..4, 1u32..5, 0u64..40);
    let trouble = (0u8..5, 0usize..10, 0u64..90, 1u64..30);
    (
        prop::collection::vec(task, 1..10),
        prop::collection::vec((0u64..90, 0usize..8), 1..5),
        prop::collection::vec(trouble, 0..6),
        2u64..40,
    )
        .prop_map(|(tasks, quota, trouble, lives)| Play {
            tasks,
            quota,
            trouble,
            lives,
        })
}

const AMOUNTS: [&str; 4] = ["", "128Mi", "256Mi", "384Mi"];

impl Play {
    fn quota(&self, at: u64) -> usize {
        let past = self.quota.iter().filter(|(from, _)| *from <= at);
        past.max_by_key(|(from, _)| *from)
            .map_or(9, |(_, units)| *units)
    }

    /// Whoever refuses this task's pods now; the quota is asked last.
    fn answer(&self, task: usize, used: usize, at: u64) -> WriteResult {
        let mut now = self.trouble.iter().filter(|(kind, of, from, lasts)| {
            let concerns = *kind == 0 || *of == task || *of >= 7;
            concerns && (*from..from + lasts).contains(&at)
        });
        match now.next() {
            Some((0, ..)) => refused(403, RBAC),
            Some((1, ..)) => webhook_fails(),
            Some((2, ..)) => WriteResult::Busy {
                why: "Too many requests".to_owned(),
                retry_after: S(1),
            },
            Some((3, ..)) => forbidden("no PriorityClass with name x was found"),
            Some(_) => refused(500, "etcdserver: request timed out"),
            None if used + self.tasks[task].2 > self.quota(at) => {
                over_quota(AMOUNTS[self.tasks[task].2])
            }
            None => WriteResult::Done,
        }
    }
}

/// Plays it for three minutes, in steps of a tenth of a second.
async fn plays(play: &Play) -> Result<(), TestCaseError> {
    let mut sim = Sim::new(&[("REFUSED_TIMEOUT", "1h"), ("MAX_WORKERS", "1000")]);
    let start = Instant::now();
    let number = |name: &str| name[1..].parse::<usize>().unwrap();
    let mut alive: Vec<(Instant, Create)> = vec![];
    let mut since: HashMap<usize, Instant> = HashMap::new();
    for tenth in 0..1_800u64 {
        let now = start + MS(100 * tenth);
        let seconds = tenth / 10;
        for (n, (repository, priority, units, workers, at)) in play.tasks.iter().enumerate() {
            if *at * 10 == tenth {
                let priority = priority.to_string();
                let config = [
                    ("OTTO_PRIORITY", priority.as_str()),
                    ("OTTO_MEMORY_LIMIT", AMOUNTS[*units]),
                ];
                sim.want(
                    task(&format!("t{n}"), &repository.to_string(), &config),
                    *workers,
                );
            }
        }
        let ended = alive.extract_if(.., |(until, _)| *until <= now).count();
        if ended > 0 {
            sim.admission.heard_of_an_end();
        }
        // What is in use, by those that live and those under way.
        let units = |name: &str| play.tasks[number(name)].2;
        let mut used: usize = alive.iter().map(|(_, (task, _))| units(task)).sum();
        sim.run(now + MS(100), |(task, attempt)| {
            let end = play.answer(number(task), used, seconds);
            if matches!(end, WriteResult::Done) {
                used += units(task);
                let until = now + S(play.lives);
                alive.push((until, (task.clone(), *attempt)));
            }
            (QUICK, end)
        })
        .await;
        // Whoever would get a pod for as long as a backoff has been tried.
        for (name, (_, attempts)) in &sim.wanted {
            let n = number(name);
            let waits = attempts.iter().any(|a| {
                !sim.under_way
                    .iter()
                    .any(|(_, c, ..)| c.0 == *name && c.1 == *a)
            });
            let fits = matches!(play.answer(n, used, seconds), WriteResult::Done)
                && matches!(play.answer(n, used, (tenth + 1) / 10), WriteResult::Done);
            if !waits || !fits {
                since.remove(&n);
                continue;
            }
            let begun = *since.entry(n).or_insert(now);
            let was_tried = sim.tries(name).iter().any(|at| *at >= begun);
            prop_assert!(
                was_tried || now - begun < ONE_BACKOFF,
                "{name} waits since {:?} s: {}",
                (begun - start).as_secs_f32(),
                sim.lacks(name)
            );
        }
        prop_assert!(sim.most_under_way <= 256);
    }
    prop_assert!(sim.failed.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever mix of refusals there is, a worker that would be admitted is tried within
    /// one backoff, and none twice ([`Sim::run`]).
    #[test]
    fn whoever_would_be_admitted_is_tried_within_one_backoff(play in play()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(plays(&play))?;
    }
}
