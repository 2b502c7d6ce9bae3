use std::time::Duration;

use super::{super::tuning::MIN_IN_FLIGHT, *};

const MS: fn(u64) -> Duration = Duration::from_millis;
/// One class has so many slots while the others have nothing in flight.
const ALONE: usize = MIN_IN_FLIGHT - CLASSES.len() + 1;

fn scheduler() -> Arc<Scheduler> {
    Arc::new(Scheduler::default())
}

/// As many as there is room for.
fn fill(scheduler: &Arc<Scheduler>, class: Class) -> Vec<Permit> {
    let mut permits = Vec::new();
    while scheduler.room(class) > 0 {
        permits.push(scheduler.enter_now(class));
    }
    permits
}

fn busy(retry_after: Duration) -> WriteResult {
    let why = String::new();
    WriteResult::Busy { why, retry_after }
}

#[tokio::test(start_paused = true)]
async fn a_class_has_a_slot_that_the_others_cannot_take() {
    let scheduler = scheduler();
    let creates = fill(&scheduler, Class::Create);
    assert_eq!(creates.len(), ALONE);
    let mut others = Vec::new();
    for class in CLASSES.into_iter().filter(|class| *class != Class::Create) {
        let mine = fill(&scheduler, class);
        assert_eq!(mine.len(), 1, "{class:?}");
        others.extend(mine);
    }
    assert_eq!(scheduler.room(Class::Create), 0);
}

#[tokio::test(start_paused = true)]
async fn shared_slots_go_to_the_class_that_has_the_fewest() {
    let scheduler = scheduler();
    let mut creates = fill(&scheduler, Class::Create);
    scheduler.want(Class::Create, true);
    scheduler.want(Class::Delete, true);
    let mut deletes = fill(&scheduler, Class::Delete);
    for _ in 0..20 {
        drop(creates.pop());
        creates.extend(fill(&scheduler, Class::Create));
        deletes.extend(fill(&scheduler, Class::Delete));
    }
    let (creates, deletes) = (creates.len(), deletes.len());
    assert!(creates.abs_diff(deletes) <= 1, "{creates} {deletes}");
    assert!(creates + deletes >= MIN_IN_FLIGHT - 3);
}

#[tokio::test(start_paused = true)]
async fn who_waits_here_goes_in_order_and_too_many_are_told_so() {
    let scheduler = scheduler();
    let all = fill(&scheduler, Class::TaskWrite);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..MAX_WAITERS {
        let (scheduler, tell) = (scheduler.clone(), tell.clone());
        waiting.spawn(async move {
            let permit = scheduler.enter(Class::TaskWrite).await;
            tell.send(n).unwrap_or_default();
            drop(permit);
        });
        tokio::task::yield_now().await;
    }
    assert!(scheduler.is_full(Class::TaskWrite));
    assert!(scheduler.enter(Class::TaskWrite).await.is_none());
    assert!(told.try_recv().is_err());
    drop(all);
    for n in 0..MAX_WAITERS {
        assert_eq!(told.recv().await, Some(n));
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_no_longer_waits_takes_no_slot() {
    let scheduler = scheduler();
    let all = fill(&scheduler, Class::TaskWrite);
    let gone = tokio::time::timeout(MS(1), scheduler.enter(Class::TaskWrite)).await;
    assert!(gone.is_err());
    drop(all);
    assert_eq!(fill(&scheduler, Class::TaskWrite).len(), ALONE);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_holds_every_class_until_it_is_over() {
    let scheduler = scheduler();
    scheduler
        .enter_now(Class::Create)
        .ended(&busy(MS(3_000)), false);
    assert_eq!(scheduler.room(Class::Status), 0);
    assert_eq!(scheduler.wake_at(), None, "nobody waits");
    scheduler.want(Class::Status, true);
    let wait = scheduler.wake_at().map(|at| at - Instant::now());
    assert_eq!(wait, Some(MS(3_000)));
    tokio::time::sleep(MS(3_000)).await;
    assert_eq!(fill(&scheduler, Class::Status).len(), ALONE);
}

#[tokio::test(start_paused = true)]
async fn a_class_whose_rounds_fail_waits_longer_and_longer_and_no_other_does() {
    let scheduler = scheduler();
    let mut waits = Vec::new();
    for _ in 0..8 {
        // A round of several is one failure.
        let round = [0; 3].map(|_| scheduler.enter_now(Class::Create));
        tokio::time::sleep(MS(1)).await;
        for permit in round {
            permit.ended(&busy(MS(0)), false);
        }
        assert!(scheduler.room(Class::Status) > 0);
        scheduler.want(Class::Create, true);
        let wait = scheduler
            .wake_at()
            .map_or(Duration::ZERO, |at| at - Instant::now());
        tokio::time::sleep(wait).await;
        assert!(scheduler.room(Class::Create) > 0);
        waits.push(wait);
    }
    assert_eq!(waits, [0, 50, 100, 200, 400, 800, 1_000, 1_000].map(MS));
    scheduler
        .enter_now(Class::Create)
        .ended(&WriteResult::Done, true);
    scheduler
        .enter_now(Class::Create)
        .ended(&busy(MS(0)), false);
    assert!(scheduler.room(Class::Create) > 0, "one alone is none");
}

#[tokio::test(start_paused = true)]
async fn the_loop_is_told_of_a_slot_that_it_waits_for() {
    let scheduler = scheduler();
    let mut all = fill(&scheduler, Class::Create);
    scheduler.want(Class::Create, true);
    let freed = tokio::time::timeout(MS(1), scheduler.freed()).await;
    assert!(freed.is_err());
    drop(all.pop());
    let freed = tokio::time::timeout(MS(1), scheduler.freed()).await;
    assert!(freed.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_limit_follows_how_long_calls_take() {
    let scheduler = scheduler();
    // The scheduler is never idle.
    let other = scheduler.enter_now(Class::Status);
    let round = async |took| {
        let permits = fill(&scheduler, Class::Create);
        tokio::time::sleep(took).await;
        for permit in permits {
            permit.ended(&WriteResult::Done, true);
        }
        scheduler.room(Class::Create)
    };
    let mut room = 0;
    for _ in 0..16 {
        room = round(MS(20)).await;
    }
    assert!(room > 200, "{room}");
    for _ in 0..9 {
        room = round(MS(150)).await;
    }
    assert!(room < 40, "{room}");
    // A call of a large object says nothing.
    let before = room;
    other.ended(&WriteResult::Done, false);
    assert!(scheduler.room(Class::Create) <= before);
}
