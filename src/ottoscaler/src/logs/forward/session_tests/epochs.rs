//! A gap begins an epoch that no leader used before.
use super::*;

/// A file that begins after the line at which a reader stands who read 50.
fn moved_on() -> File {
    File {
        lines: lines(80)[70..].to_vec(),
        ..File::default()
    }
}

#[tokio::test]
async fn a_file_that_has_moved_on_gives_one_gap_record() {
    let stored = after(50);
    let file = moved_on();
    let (end, taken, _) = run(file, |_| Some(Status::Ack), Some(stored)).await;
    assert_eq!(end, End::Drained);
    let gaps = taken.iter().filter(|(_, m)| m.contains("missing")).count();
    assert_eq!((gaps, taken.len()), (1, 11), "{taken:?}");
}

#[tokio::test]
async fn an_epoch_is_stored_before_it_is_used_and_is_above_all_that_were() {
    let (listener, host) = listener().await;
    let file = File {
        unstored: AtomicUsize::new(2),
        ..moved_on()
    };
    let mut session = session(&host, file, Some(after(50)));
    // A leader before had begun an epoch there, which was not acknowledged.
    session.pod = Arc::new(Pod {
        log_epoch: 7,
        ..Pod::clone(&session.pod)
    });
    let source = session.source.clone();
    let (ended, taken) = against(listener, |_| Some(Status::Ack), session.run()).await;
    assert_eq!((ended.end, taken.len()), (End::Drained, 11));
    assert_eq!(*source.reserved.lock().unwrap(), [8]);
}

#[tokio::test]
async fn an_epoch_that_somebody_wrote_on_a_pod_leads_to_none_that_is_not_taken() {
    let (listener, host) = listener().await;
    let file = moved_on();
    let mut session = session(&host, file, Some(after(50)));
    session.pod = Arc::new(Pod {
        log_epoch: u32::MAX,
        ..Pod::clone(&session.pod)
    });
    let source = session.source.clone();
    let (ended, _) = against(listener, |_| Some(Status::Ack), session.run()).await;
    assert_eq!(ended.end, End::Drained);
    // Of the term.
    assert_eq!(*source.reserved.lock().unwrap(), [3]);
}

#[tokio::test]
async fn a_gap_whose_epoch_is_not_stored_is_left_to_the_next_leader() {
    let (listener, host) = listener().await;
    let file = File {
        unstored: AtomicUsize::new(usize::MAX),
        ..moved_on()
    };
    let session = session(&host, file, Some(after(50)));
    let drain = session.drain.clone();
    let drains = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drain.cancel();
    };
    let both = futures::future::join(session.run(), drains);
    let ((ended, ()), taken) = against(listener, |_| Some(Status::Ack), both).await;
    assert_eq!((ended.end, taken), (End::HandedOver, vec![]));
}
