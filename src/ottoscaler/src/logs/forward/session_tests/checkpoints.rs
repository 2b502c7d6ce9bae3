//! Where a session goes on, and what it notes to be stored.
use super::*;

/// Its pod may be there for a while: another leader would send its last lines again.
#[tokio::test]
async fn where_a_log_ended_is_noted_to_be_stored() {
    let (listener, host) = listener().await;
    let file = file(100);
    let session = session(&host, file, None);
    let checkpoints = session.checkpoints.clone();
    let (ended, _) = against(listener, |_| Some(Status::Ack), session.run()).await;
    assert_eq!(ended.end, End::Drained);
    assert_eq!(checkpoints.get("u"), Checkpoint::of_annotation(&after(100)));
}

/// An earlier version may have led since the shards were written, and so may this one
/// since the annotation was.
#[tokio::test]
async fn a_log_is_read_on_from_the_further_one_of_the_stored_checkpoints() {
    for (annotated, noted, sent) in [
        (Some(40), None, 60),
        (None, Some(40), 60),
        (Some(40), Some(70), 30),
        (Some(70), Some(40), 30),
        (None, None, 100),
    ] {
        let (listener, host) = listener().await;
        let file = file(100);
        let session = session(&host, file, annotated.map(after));
        if let Some(noted) = noted {
            let noted = Checkpoint::of_annotation(&after(noted)).unwrap();
            session.checkpoints.begin("u", &noted);
        }
        let (ended, taken) = against(listener, |_| Some(Status::Ack), session.run()).await;
        assert_eq!((ended.end, taken.len()), (End::Drained, sent));
    }
}

#[tokio::test]
async fn a_stored_checkpoint_of_a_run_that_has_yet_to_begin_is_none() {
    let (listener, host) = listener().await;
    let file = file(100);
    let session = session(&host, file, None);
    let noted = Checkpoint::of_annotation(&after(70)).unwrap();
    let checkpoints = session.checkpoints.clone();
    checkpoints.begin(
        "u",
        &Checkpoint {
            restart: 1,
            ..noted
        },
    );
    let (_, taken) = against(listener, |_| Some(Status::Ack), session.run()).await;
    assert_eq!(taken.len(), 100);
    assert_eq!(checkpoints.get("u"), Checkpoint::of_annotation(&after(100)));
}

#[tokio::test]
async fn the_next_leader_goes_on_after_the_last_acknowledged_line() {
    let stored = after(50);
    let (_, taken, _) = run(file(80), |_| Some(Status::Ack), Some(stored)).await;
    assert_eq!(taken, expected(80)[50..]);
}
