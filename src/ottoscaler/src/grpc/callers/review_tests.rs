//! What is remembered of reviews and for how long, on paused time.
#![expect(clippy::unwrap_used)]
use std::{sync::atomic::Ordering, time::SystemTime};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures::future::join_all;

use super::{super::test_reviews::TestReviews, *};

const CREATE: Right = Right {
    verb: "create",
    resource: "workers",
    subresource: "",
};
const PAUSE: Right = Right {
    verb: "update",
    resource: "workers",
    subresource: "pause",
};

fn cache() -> (Arc<TestReviews>, Arc<ReviewCache>) {
    let reviews = Arc::new(TestReviews::default());
    reviews.add("t", "caller", &["create workers"]);
    let cache = ReviewCache::new(reviews.clone(), "ottoscaler".to_owned());
    (reviews, Arc::new(cache))
}

fn allowed() -> Verdict {
    Verdict::Allowed("caller".into())
}

async fn after(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn an_allowed_token_is_asked_about_again_after_a_minute_and_a_denied_one_after_ten_seconds() {
    let (reviews, cache) = cache();
    let asked = || reviews.token_reviews.load(Ordering::SeqCst);
    for (wait, more) in [(0, 1), (59, 0), (2, 1), (30, 0)] {
        let before = asked();
        after(wait).await;
        assert_eq!(cache.verdict("t", Some(CREATE)).await.unwrap(), allowed());
        assert_eq!(asked() - before, more, "after {wait} s");
    }
    for (token, right) in [("t", PAUSE), ("nobody's", CREATE)] {
        for (wait, more) in [(0, 1), (9, 0), (2, 1)] {
            let before = asked();
            after(wait).await;
            assert_ne!(cache.verdict(token, Some(right)).await.unwrap(), allowed());
            assert_eq!(asked() - before, more, "{token} after {wait} s");
        }
    }
    // A right that is given counts once the refusal is forgotten.
    reviews.add("t", "caller", &["create workers", "update workers/pause"]);
    after(11).await;
    assert_eq!(cache.verdict("t", Some(PAUSE)).await.unwrap(), allowed());
    // A token that is taken back counts for a minute.
    reviews.users.lock().unwrap().clear();
    after(61).await;
    assert_eq!(
        cache.verdict("t", Some(CREATE)).await.unwrap(),
        Verdict::BadToken
    );
}

#[tokio::test(start_paused = true)]
async fn calls_of_one_token_share_a_review_and_of_all_tokens_eight_are_in_flight() {
    let (reviews, cache) = cache();
    *reviews.takes.lock().unwrap() = Duration::from_millis(100);
    let calls = join_all((0..50).map(|_| cache.verdict("t", Some(CREATE)))).await;
    assert!(
        calls
            .into_iter()
            .all(|verdict| verdict.unwrap() == allowed())
    );
    assert_eq!(reviews.token_reviews.load(Ordering::SeqCst), 1);
    let tokens: Vec<String> = (0..40).map(|n| format!("t{n}")).collect();
    let calls = join_all(
        tokens
            .iter()
            .map(|token| cache.verdict(token, Some(CREATE))),
    )
    .await;
    assert!(
        calls
            .into_iter()
            .all(|verdict| verdict.unwrap() == Verdict::BadToken)
    );
    assert_eq!(reviews.most_in_flight.load(Ordering::SeqCst), MAX_REVIEWS);
    assert!(cache.state().flights.is_empty());
    // Whoever gets no turn in time is told so and asks nothing.
    *reviews.takes.lock().unwrap() = Duration::from_secs(10);
    let tokens: Vec<String> = (0..20).map(|n| format!("u{n}")).collect();
    let calls = join_all(
        tokens
            .iter()
            .map(|token| cache.verdict(token, Some(CREATE))),
    )
    .await;
    assert_eq!(
        calls.iter().filter(|call| call.is_err()).count(),
        20 - MAX_REVIEWS
    );
}

#[tokio::test(start_paused = true)]
async fn a_review_that_its_call_gave_up_is_forgotten() {
    let (reviews, cache) = cache();
    *reviews.takes.lock().unwrap() = Duration::from_secs(60);
    let given_up = timeout(Duration::from_secs(1), cache.verdict("t", Some(CREATE)));
    assert!(given_up.await.is_err());
    *reviews.takes.lock().unwrap() = Duration::ZERO;
    assert_eq!(cache.verdict("t", Some(CREATE)).await.unwrap(), allowed());
    assert_eq!(reviews.token_reviews.load(Ordering::SeqCst), 2);
    assert!(cache.state().flights.is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_the_api_server_an_allowed_token_holds_for_ten_minutes() {
    let (reviews, cache) = cache();
    cache.verdict("t", Some(CREATE)).await.unwrap();
    reviews.away.store(true, Ordering::SeqCst);
    let mut served = 0;
    for _ in 0..599 {
        after(1).await;
        served += usize::from(cache.verdict("t", Some(CREATE)).await.is_ok());
    }
    assert_eq!(served, 599);
    // It was asked about again every few seconds, and not by each call.
    let asked = reviews.token_reviews.load(Ordering::SeqCst);
    assert!((100..200).contains(&asked), "{asked}");
    after(2).await;
    assert!(cache.verdict("t", Some(CREATE)).await.is_err());
    reviews.away.store(false, Ordering::SeqCst);
    assert_eq!(cache.verdict("t", Some(CREATE)).await.unwrap(), allowed());
}

fn token_that_expires_in(seconds: u64) -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let payload = serde_json::json!({ "exp": now.as_secs() + seconds }).to_string();
    format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload))
}

#[tokio::test(start_paused = true)]
async fn no_token_counts_past_its_own_expiry() {
    let (reviews, cache) = cache();
    let (short, long) = (token_that_expires_in(20), token_that_expires_in(120));
    for token in [&short, &long] {
        reviews.add(token, "caller", &["create workers"]);
        assert_eq!(cache.verdict(token, Some(CREATE)).await.unwrap(), allowed());
    }
    reviews.away.store(true, Ordering::SeqCst);
    after(10).await;
    assert!(cache.verdict(&short, Some(CREATE)).await.is_ok());
    after(11).await;
    assert!(cache.verdict(&short, Some(CREATE)).await.is_err());
    assert!(cache.verdict(&long, Some(CREATE)).await.is_ok());
    after(100).await;
    assert!(cache.verdict(&long, Some(CREATE)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn bad_tokens_drive_out_no_known_caller() {
    let (reviews, cache) = cache();
    cache.verdict("t", Some(CREATE)).await.unwrap();
    for n in 0..2_000 {
        cache
            .verdict(&format!("bad{n}"), Some(CREATE))
            .await
            .unwrap();
    }
    let asked = reviews.token_reviews.load(Ordering::SeqCst);
    assert_eq!(asked, 2_001);
    assert_eq!(cache.verdict("t", Some(CREATE)).await.unwrap(), allowed());
    assert_eq!(reviews.token_reviews.load(Ordering::SeqCst), asked);
    assert!(cache.state().len() <= 1_024, "{}", cache.state().len());
}

#[tokio::test(start_paused = true)]
async fn a_token_for_another_audience_is_nobodys() {
    let (reviews, cache) = cache();
    for audiences in [vec![], vec!["https://kubernetes.default.svc".to_owned()]] {
        reviews
            .users
            .lock()
            .unwrap()
            .get_mut("t")
            .unwrap()
            .audiences = audiences;
        after(11).await;
        assert_eq!(
            cache.verdict("t", Some(CREATE)).await.unwrap(),
            Verdict::BadToken
        );
    }
    assert_eq!(reviews.access_reviews.load(Ordering::SeqCst), 0);
}

#[test]
fn memory_holds_no_token() {
    let (_, cache) = cache();
    let key = cache.key("s3cr3t", Some(CREATE));
    assert_ne!(key, cache.key("s3cr3t", None));
    assert_ne!(key, cache.key("s3cr3s", Some(CREATE)));
    let (_, other) = self::cache();
    assert_ne!(
        key,
        other.key("s3cr3t", Some(CREATE)),
        "the key is of this process"
    );
}
