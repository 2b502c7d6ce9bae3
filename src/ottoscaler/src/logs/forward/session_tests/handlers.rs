//! Handlers that refuse, are silent, or do not read.
use super::*;

#[tokio::test]
async fn a_storm_of_retries_loses_nothing_and_keeps_order() {
    let mood: Mood = |n| {
        Some(if n % 3 == 1 {
            Status::Retry
        } else {
            Status::Ack
        })
    };
    let (_, taken, _) = run(file(60), mood, None).await;
    assert_eq!(without_repeats(taken), expected(60));
}

#[tokio::test]
async fn a_handler_that_answers_nothing_is_left_and_asked_again() {
    let mood: Mood = |n| (!(20..36).contains(&n)).then_some(Status::Ack);
    let (end, taken, _) = run(file(40), mood, None).await;
    assert_eq!((end, without_repeats(taken)), (End::Drained, expected(40)));
}

#[tokio::test]
async fn a_stream_that_is_not_read_gets_a_connection_of_its_own() {
    let (listener, host) = listener().await;
    let file = || file(3_000);
    let mut unread = session(&host, file(), None);
    unread.context.window = 1_024;
    unread.pod = Arc::new(Pod {
        name: UNREAD_WORKER.into(),
        ..(*unread.pod).clone()
    });
    let mut read = session(&host, file(), None);
    read.context.window = 1_024;
    read.handler = unread.handler.clone();
    let handler = unread.handler.clone();
    let both = async {
        #[expect(clippy::disallowed_methods, reason = "awaited below")]
        let unread = tokio::spawn(unread.run());
        while handler.connections_apart() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let end = read.run().await;
        unread.abort();
        end.end
    };
    let both = timeout(Duration::from_secs(20), both);
    let (end, taken) = against(listener, |_| Some(Status::Ack), both).await;
    assert_eq!((end.unwrap(), taken), (End::Drained, expected(3_000)));
}

#[tokio::test]
async fn more_workers_than_a_connection_may_have_streams_are_served_at_once() {
    let (listener, host) = listener().await;
    let first = session(&host, File::default(), None);
    let all = (0..250).map(|_| {
        let file = file(3);
        let mut session = session(&host, file, None);
        session.handler = first.handler.clone();
        session.context.ack_timeout = Duration::from_secs(20);
        session.run()
    });
    let all = timeout(Duration::from_secs(15), futures::future::join_all(all));
    let (ends, taken) = serving(listener, |_| Some(Status::Ack), 250, all).await;
    assert!(ends.unwrap().iter().all(|e| e.end == End::Drained));
    assert_eq!(taken.len(), 750);
}
