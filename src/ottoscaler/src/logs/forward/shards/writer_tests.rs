#![expect(clippy::unwrap_used)]
use std::collections::HashSet;

use serde_json::json;
use tokio::task::JoinSet;

use super::{
    super::{
        super::checkpoint::Checkpoint,
        Writers, adopt,
        test_api::{Api, Fate},
    },
    *,
};

const TERM: &str = "lease/1/a";
const SUCCESSOR: &str = "lease/2/b";
const S: fn(u64) -> Duration = Duration::from_secs;

fn upto(next: u64) -> Checkpoint {
    Checkpoint {
        next,
        ..Checkpoint::start(0)
    }
}

/// A term that has begun; its writers run until it is drained.
struct Term {
    checkpoints: Checkpoints,
    ended: CancellationToken,
    writers: JoinSet<()>,
}

async fn term(api: &Api, term: &str) -> Term {
    let (checkpoints, writers) = adopt(&api.leader(term), &Metrics::default()).await;
    let ended = CancellationToken::new();
    let until = ended.clone();
    let mut running = JoinSet::new();
    running.spawn(async move { Writers::run(writers, &until).await });
    Term {
        checkpoints,
        ended,
        writers: running,
    }
}

impl Term {
    /// As a session does from its beginning to that sequence.
    fn follows(&self, uid: &str, next: u64) {
        self.checkpoints.begin(uid, &upto(1));
        self.checkpoints.note(uid, &upto(next));
    }

    async fn drain(self) {
        self.ended.cancel();
        self.writers.join_all().await;
    }

    async fn kill(mut self) {
        self.writers.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_pods_take_at_most_one_write_a_shard_and_second() {
    let api = Api::default();
    let term = term(&api, TERM).await;
    let uids: Vec<String> = (0..1_000).map(|n| format!("uid-{n}")).collect();
    let began = Instant::now();
    for next in 2..102 {
        uids.iter().for_each(|uid| term.follows(uid, next));
        sleep(Duration::from_millis(100)).await;
    }
    let writes = api.calls("PATCH");
    let shards: HashSet<&str> = writes.iter().map(|w| &*w.name).collect();
    assert_eq!(shards.len(), SHARDS as usize);
    for shard in shards {
        let of = writes.iter().filter(|w| w.name == shard);
        let at: Vec<Instant> = of.map(|w| w.at).collect();
        assert!(at.windows(2).all(|w| w[1] - w[0] >= WRITE_INTERVAL));
        assert!((9..=10).contains(&at.len()), "{}", at.len());
    }
    // No two shards at the same moment.
    let moments: HashSet<Duration> = writes.iter().map(|w| w.at - began).collect();
    assert_eq!(moments.len(), writes.len());
}

#[tokio::test(start_paused = true)]
async fn a_killed_leaders_successor_reads_what_was_noted_a_second_before() {
    let api = Api::default();
    let first = term(&api, TERM).await;
    for next in 2..50 {
        first.follows("u", next);
        sleep(Duration::from_millis(100)).await;
    }
    first.kill().await;
    let next = term(&api, SUCCESSOR).await;
    let known = next.checkpoints.get("u").unwrap().next;
    assert!((39..50).contains(&known), "{known}");
    assert_eq!(next.checkpoints.get("other"), None);
}

#[tokio::test(start_paused = true)]
async fn a_drain_stores_everything_and_each_write_carries_its_term() {
    let api = Api::default();
    let first = term(&api, TERM).await;
    first.follows("u1", 7);
    first.follows("u2", 8);
    first.drain().await;
    assert_eq!(api.lines(), ["u1 0 0 7", "u2 0 0 8"]);
    let second = term(&api, SUCCESSOR).await;
    second.follows("u2", 9);
    second.drain().await;
    assert_eq!(api.lines(), ["u1 0 0 7", "u2 0 0 9"]);
    let names = (0..SHARDS).map(|n| format!("ottoscaler-log-checkpoints-{n}"));
    let terms: HashSet<String> = names
        .map(|n| api.object(&n)["metadata"]["annotations"]["ottoscaler.io/term"].clone())
        .filter_map(|term| Some(term.as_str()?.to_owned()))
        .collect();
    assert_eq!(
        terms,
        HashSet::from([TERM.to_owned(), SUCCESSOR.to_owned()])
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_new_is_not_written() {
    let api = Api::default();
    let term = term(&api, TERM).await;
    term.follows("u", 5);
    sleep(S(2)).await;
    assert_eq!(api.calls("PATCH").len(), 1);
    term.follows("u", 5);
    sleep(S(60)).await;
    term.drain().await;
    assert_eq!(api.calls("PATCH").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_gone_leave_their_shards() {
    let api = Api::default();
    let first = term(&api, TERM).await;
    first.follows("u1", 7);
    first.follows("u2", 8);
    first.drain().await;
    let second = term(&api, SUCCESSOR).await;
    second.checkpoints.retain(&HashSet::from(["u2".to_owned()]));
    second.drain().await;
    assert_eq!(api.lines(), ["u2 0 0 8"]);
}

/// The shard of the pod `u`.
async fn shard(api: &Api) -> String {
    let first = term(api, TERM).await;
    first.follows("u", 5);
    first.drain().await;
    api.calls("PATCH").remove(0).name
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_somebody_deletes_or_changes_is_made_anew() {
    let api = Api::default();
    let name = shard(&api).await;
    let term = term(&api, TERM).await;
    api.delete(&name);
    term.follows("u", 6);
    sleep(S(2)).await;
    assert_eq!(api.lines(), ["u 0 0 6"]);
    api.put(&name, &json!({"v1": "x", "theirs": "y"}));
    term.follows("u", 7);
    sleep(S(2)).await;
    assert_eq!(api.lines(), ["u 0 0 7"]);
}

#[tokio::test(start_paused = true)]
async fn a_former_leaders_late_write_changes_nothing() {
    let api = Api::default();
    shard(&api).await;
    let former = term(&api, TERM).await;
    api.calls("PATCH");
    // It is on its way for longer than the term lasts.
    api.on(|_| Fate::Late(S(3)));
    former.follows("u", 6);
    sleep(WRITE_INTERVAL * 2).await;
    assert_eq!(api.calls("PATCH").len(), 1);
    former.kill().await;
    api.on(|_| Fate::Answered);
    let next = term(&api, SUCCESSOR).await;
    next.follows("u", 9);
    next.drain().await;
    sleep(S(5)).await;
    assert_eq!(api.lines(), ["u 0 0 9"]);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_no_shard_is_read_as_far_as_it_is_one() {
    let api = Api::default();
    let name = shard(&api).await;
    for (data, known) in [
        (json!({"v1": "u 0 0 7\nu2 rubbish\n\u{1}"}), Some(7)),
        (json!({"v1": "u 0 0 0"}), None),
        (json!({"other": "u 0 0 7"}), None),
        (json!(null), None),
        (json!({"v1": 7}), None),
    ] {
        api.put(&name, &data);
        let term = term(&api, TERM).await;
        assert_eq!(term.checkpoints.get("u").map(|c| c.next), known, "{data}");
        term.follows("u", 10);
        term.drain().await;
        assert_eq!(api.lines(), ["u 0 0 10"], "{data}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_missing_holds_nobody_up_and_is_asked_for_less_and_less() {
    let api = Api::default();
    api.on(|_| Fate::Refused(403));
    let began = Instant::now();
    let term = term(&api, TERM).await;
    assert!(began.elapsed() < S(1), "{:?}", began.elapsed());
    api.calls("");
    term.follows("u", 5);
    sleep(S(100)).await;
    let writes = api.calls("PATCH").len();
    assert!((5..=9).contains(&writes), "{writes}");
    // It is given.
    api.on(|_| Fate::Answered);
    sleep(LAST_BACKOFF).await;
    assert_eq!(api.lines(), ["u 0 0 5"]);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_is_waited_for_only_so_long() {
    let api = Api::default();
    shard(&api).await;
    let mut calls = 0;
    api.on(move |_| {
        calls += 1;
        if calls > 2 * SHARDS {
            return Fate::Answered;
        }
        Fate::Refused(503)
    });
    let other = term(&api, SUCCESSOR).await;
    assert_eq!(other.checkpoints.get("u").map(|c| c.next), Some(5));
    other.kill().await;

    api.on(|_| Fate::Late(S(3600)));
    let began = Instant::now();
    let term = term(&api, SUCCESSOR).await;
    assert!(
        began.elapsed() < READ_WITHIN + S(5),
        "{:?}",
        began.elapsed()
    );
    term.follows("u", 9);
    let began = Instant::now();
    term.drain().await;
    assert!(
        began.elapsed() < FLUSH_WITHIN + S(6),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn large_shards_are_written_less_often() {
    assert_eq!(pace(0), WRITE_INTERVAL);
    // A thousand pods.
    assert_eq!(pace(63 * 100), WRITE_INTERVAL);
    // Ten thousand.
    let ten_thousand = pace(625 * 100);
    assert!(
        ten_thousand > S(3) && ten_thousand < S(5),
        "{ten_thousand:?}"
    );
}
