#![expect(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

fn spool(limit: u64) -> Spool {
    Spool::new(std::env::temp_dir(), limit)
}

fn text(n: usize, length: usize) -> String {
    format!("{n}:{}", "x".repeat(length))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// However pushes and pops alternate, and however long entries are.
    #[test]
    fn what_goes_in_comes_out_in_order(
        turns in prop::collection::vec((1usize..60, 0usize..60, 0usize..40_000), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let spool = spool(1 << 40);
            let mut queue = spool.queue::<String>();
            let (mut pushed, mut popped, mut lengths) = (0, 0, VecDeque::new());
            for (push, pop, length) in turns {
                for _ in 0..push {
                    queue.push(&text(pushed, length)).await.unwrap();
                    lengths.push_back(length);
                    pushed += 1;
                }
                for _ in 0..pop.min(pushed - popped) {
                    let expected = text(popped, lengths.pop_front().unwrap());
                    assert_eq!(queue.pop().await.unwrap(), Some(expected));
                    popped += 1;
                }
                assert_eq!(queue.is_empty(), pushed == popped);
            }
            while let Some(entry) = queue.pop().await.unwrap() {
                assert_eq!(entry, text(popped, lengths.pop_front().unwrap()));
                popped += 1;
            }
            assert_eq!((pushed, spool.used.get()), (popped, 0));
        });
    }
}

#[tokio::test]
async fn a_worker_has_a_share_and_all_have_a_limit() {
    let spool = spool(800_000);
    let mut queues: Vec<_> = (0..10).map(|_| spool.queue::<String>()).collect();
    for queue in &mut queues {
        for n in 0.. {
            if !queue.has_room() {
                break;
            }
            queue.push(&text(n, 1_000)).await.unwrap();
        }
        assert!(queue.used < 100_000 + 2 * CHUNK as i64, "{}", queue.used);
    }
    let used = spool.used.get();
    assert!((800_000..900_000).contains(&used), "{used}");
    assert!(queues[8].is_empty() && queues[9].is_empty());
    queues.clear();
    assert_eq!(spool.used.get(), 0);
    assert!(!self::spool(0).queue::<String>().has_room());
}

#[tokio::test]
async fn what_was_read_is_given_back_while_more_comes() {
    let spool = spool(1 << 40);
    let mut queue = spool.queue::<String>();
    let line = "x".repeat(10_000);
    for _ in 0..4_000 {
        queue.push(&line).await.unwrap();
        queue.push(&line).await.unwrap();
        queue.pop().await.unwrap().unwrap();
        if queue.len > 100 {
            queue.pop().await.unwrap().unwrap();
        }
    }
    let held = queue.len as i64 * 10_000;
    let (used, segment) = (spool.used.get(), SEGMENT as i64);
    assert!(used <= held + 2 * segment, "{used} of {held}");
}

#[tokio::test]
async fn what_the_disk_does_not_take_stays_in_memory_in_order() {
    let nowhere = Spool::new("/nonexistent/spool".into(), 1 << 30);
    let mut queue = nowhere.queue::<String>();
    let mut refused = 0;
    for n in 0..40 {
        refused += usize::from(queue.push(&text(n, 1_000)).await.is_err());
    }
    assert_eq!((refused, queue.has_room()), (1, false));
    for n in 0..40 {
        assert_eq!(queue.pop().await.unwrap(), Some(text(n, 1_000)));
    }
    assert!(queue.has_room(), "it is tried again");
}

#[tokio::test]
async fn what_the_disk_lost_is_an_error() {
    let spool = spool(1 << 30);
    let mut queue = spool.queue::<String>();
    for n in 0..100 {
        queue.push(&text(n, 1_000)).await.unwrap();
    }
    queue.lose().unwrap();
    assert!(queue.pop().await.is_err());
    queue.clear();
    assert_eq!((queue.pop().await.unwrap(), spool.used.get()), (None, 0));
}
