//! How a log ends: with its container, its pod, or the container's next run.
use super::*;
use crate::logs::read::ends::RETRY_AFTER;

#[tokio::test(start_paused = true)]
async fn a_log_is_followed_to_its_end() {
    let node = Node::running();
    let mut tail = node.read().await;
    node.print(3..4);
    node.end();
    assert_eq!(rest(&mut tail).await, ["line 3", "end"]);
    // Once followed, once read to the end after the container's.
    assert_eq!(
        *node.opens.lock().unwrap(),
        [(None, true), (Some(1_790_000_003 - 10), false)]
    );
}

#[tokio::test(start_paused = true)]
async fn when_a_follow_has_ended_its_status_is_waited_for_and_not_the_log_asked() {
    // Once followed, then read to the end, or asked again where it does not come soon.
    for after in [1_500, 25_000] {
        let node = Node::running();
        let mut tail = node.read().await;
        node.stop();
        let told = || {
            node.end();
            Instant::now()
        };
        let (all, told) = meanwhile(rest(&mut tail), Duration::from_millis(after), told).await;
        assert_eq!(all, ["end"]);
        assert!(told.elapsed() <= STATUS_POLL, "{:?}", told.elapsed());
        assert_eq!(node.opens.lock().unwrap().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_ended_twice_is_read_once_more_where_something_may_have_come() {
    let seconds = Duration::from_secs;
    // A node that goes twice, the second time right after it was asked, and prints then.
    let node = Node::running();
    let mut tail = node.read().await;
    node.stop();
    let comes = || {
        node.unknown.store(3, Relaxed);
        node.print(3..5);
        node.end();
    };
    let goes = timeout(seconds(25), some(&mut tail)).await;
    assert!(goes.is_err());
    assert_eq!(node.opens.lock().unwrap().len(), 2);
    // It was refused since: after half a minute without a status it is asked again.
    node.unknown.store(usize::MAX, Relaxed);
    let (all, ()) = meanwhile(rest(&mut tail), seconds(30), comes).await;
    assert_eq!(all, ["line 3", "line 4", "end"]);
    // It had not ended: what is there half a minute later has left the last line behind.
    let node = Node::running();
    let mut tail = node.read().await;
    node.stop();
    let waits = timeout(seconds(25), some(&mut tail)).await;
    assert!(waits.is_err());
    node.rotate();
    node.print(3..5);
    let (all, ()) = meanwhile(rest(&mut tail), seconds(20), || node.end()).await;
    let missed = ["gap rotated Some(2) Some(3)", "line 3", "line 4", "end"];
    assert_eq!(all, missed);
    // The last line lacks its end, which only a read after the container's tells.
    let node = Node::running();
    let mut tail = node.read().await;
    let whole: usize = (0..3).map(|n| text(n).len() + 1).sum();
    node.print(3..4);
    node.cut.lock().unwrap().extend([whole + 5, whole + 5]);
    tail.was_held_up();
    let (all, ()) = meanwhile(rest(&mut tail), seconds(20), || node.end()).await;
    assert_eq!(all, ["line 3", "end"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_log_whose_follows_are_cut_now_and_then_is_followed_on() {
    let node = Node::running();
    let mut tail = node.read().await;
    for n in 3..8 {
        // Cut in the middle of silence, three times.
        for _ in 0..3 {
            let silent = timeout(Duration::from_secs(200), some(&mut tail)).await;
            assert!(silent.is_err());
            node.stop();
            let cut = timeout(Duration::from_millis(1), some(&mut tail)).await;
            assert!(cut.is_err());
            node.stopped.store(false, Relaxed);
        }
        node.print(n..n + 1);
        let printed = Instant::now();
        reads(&mut tail, n..n + 1).await;
        assert!(printed.elapsed() <= RETRY_AFTER, "{:?}", printed.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_after_the_last_line_of_a_followed_log_is_no_gap() {
    let node = Node::running();
    let mut tail = node.read_and_rotated().await;
    node.end();
    assert_eq!(rest(&mut tail).await, ["end"]);
    // The same, where the status comes seconds after the end.
    let node = Node::running();
    let mut tail = node.read_and_rotated().await;
    node.stop();
    let late = Duration::from_secs(20);
    let (all, ()) = meanwhile(rest(&mut tail), late, || node.end()).await;
    assert_eq!(all, ["end"]);
    // It is, where the node was away meanwhile,
    let node = Node::running();
    let mut tail = node.read_and_rotated().await;
    node.stop();
    let goes = timeout(Duration::from_millis(10), some(&mut tail)).await;
    assert!(goes.is_err());
    node.unknown.store(usize::MAX, Relaxed);
    let comes = || {
        node.end();
        node.unknown.store(0, Relaxed);
    };
    let (all, ()) = meanwhile(rest(&mut tail), late, comes).await;
    assert_eq!(all, ["gap rotated Some(2) None", "end"]);
    // and where the follow missed what came then.
    let node = Node::running();
    node.hang_at.store(3, Relaxed);
    let mut tail = node.read_and_rotated().await;
    node.print(3..4);
    node.end();
    let missed = ["gap rotated Some(2) Some(3)", "line 3", "end"];
    assert_eq!(rest(&mut tail).await, missed);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_goes_before_its_log_was_read_is_a_gap() {
    let node = Node::running();
    node.print(0..2);
    let mut tail = node.tail(None);
    some(&mut tail).await;
    *node.pod.lock().unwrap() = None;
    node.lines.send_modify(|_| {});
    assert_eq!(rest(&mut tail).await, ["line 1", "gone"]);
    // The same, cut off before.
    let node = Node::running();
    node.print(0..2);
    node.cut.lock().unwrap().push(text(0).len() + 1);
    let mut tail = node.tail(None);
    some(&mut tail).await;
    let goes = || *node.pod.lock().unwrap() = None;
    let (all, ()) = meanwhile(rest(&mut tail), Duration::from_millis(100), goes).await;
    assert_eq!(all, ["gap pod gone Some(0) None", "gone"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_restarts_is_read_to_its_end_first() {
    let node = Node::running();
    let mut tail = node.read().await;
    // Not seen by the follow.
    node.hang_at.store(3, Relaxed);
    node.print(3..5);
    node.restart();
    node.hang_at.store(usize::MAX, Relaxed);
    node.print(5..7);
    assert_eq!(rest(&mut tail).await, ["line 3", "line 4", "end"]);
    let mut next = node.tail_of(1, None);
    assert_eq!(some(&mut next).await, "line 5");
    node.end();
    assert_eq!(rest(&mut next).await, ["line 6", "end"]);
}

/// Its successor prints already, and the status tells of the end only.
#[tokio::test(start_paused = true)]
async fn a_container_that_is_started_again_is_not_judged_by_the_log_of_the_next() {
    for (after_ms, print) in [(1_000, true), (1_000, false), (9_000, true), (9_000, false)] {
        let node = Node::running();
        let mut tail = node.read().await;
        let ended = Pod {
            phase: PodPhase::Running,
            finished: Some(1_790_000_003),
            restarts: true,
            ..Pod::default()
        };
        node.hang_at.store(3, Relaxed);
        node.rotate();
        node.stop();
        // Once the follow has ended.
        let prints = || {
            *node.pod.lock().unwrap() = Some(Arc::new(ended));
            node.hang_at.store(usize::MAX, Relaxed);
            node.print(3..3 + i64::from(print));
        };
        let told = || {
            node.restart();
            node.began.store(3, Relaxed);
        };
        let all = meanwhile(rest(&mut tail), Duration::from_millis(10), prints);
        let ((all, ()), ()) = meanwhile(all, Duration::from_millis(after_ms), told).await;
        assert_eq!(all, ["end"], "{after_ms} {print}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_log_is_gone_is_one_gap() {
    let node = Node::running();
    node.print(0..3);
    let at = node.after(2).await;
    node.restart();
    node.print(3..5);
    node.restart();
    let mut tail = node.tail(at);
    assert_eq!(rest(&mut tail).await, ["gap restarted Some(1) None", "end"]);
}
