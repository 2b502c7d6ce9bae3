use super::{
    super::{
        notify,
        test_shared::{client, shared, status, task},
    },
    *,
};
use crate::election::Pause;

#[tokio::test]
async fn changes_that_were_missed_make_everything_due() {
    let (_set, pause) = Pause::channel(false);
    let shared = shared(client(|_, _, _| status(404, "", "")), pause, &[]);
    let (offers, _inbox) = notify::channel();
    let mut engine = Engine::new(shared.clone(), offers);
    let mut changes = shared.index.subscribe();
    shared.index.wrote_task(Task {
        resource_version: 1,
        ..task("missed", "r", &[])
    });
    for _ in 0..9_999 {
        shared.index.announce(Arc::from("other"), false);
    }
    engine.take_all(&mut changes);
    assert_eq!(engine.due.pop(Instant::now()).as_deref(), Some("missed"));
}
