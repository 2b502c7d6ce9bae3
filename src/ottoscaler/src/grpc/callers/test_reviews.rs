//! An API server in memory that reviews tokens and rights.
#![expect(clippy::unwrap_used)]
use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

use super::{
    reviews::{NotReviewed, Reviews},
    rights::Right,
};

/// A user with the audiences of its token and its rights.
#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) name: &'static str,
    pub(super) audiences: Vec<String>,
    pub(super) rights: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct TestReviews {
    /// By token.
    pub(super) users: Mutex<HashMap<String, User>>,
    pub(super) away: AtomicBool,
    /// The time that each answer takes.
    pub(super) takes: Mutex<Duration>,
    pub(super) token_reviews: AtomicUsize,
    pub(super) access_reviews: AtomicUsize,
    in_flight: AtomicUsize,
    pub(super) most_in_flight: AtomicUsize,
}

impl TestReviews {
    pub(super) fn add(&self, token: &str, name: &'static str, rights: &[&str]) {
        let user = User {
            name,
            audiences: vec!["ottoscaler".to_owned()],
            rights: rights.iter().map(|&right| right.to_owned()).collect(),
        };
        self.users.lock().unwrap().insert(token.to_owned(), user);
    }

    fn users(&self) -> Result<HashMap<String, User>, NotReviewed> {
        if self.away.load(Ordering::SeqCst) {
            return Err(NotReviewed::Api("away".to_owned()));
        }
        Ok(self.users.lock().unwrap().clone())
    }
}

#[tonic::async_trait]
impl Reviews for TestReviews {
    async fn token(&self, token: &str, _: &str) -> Result<TokenReviewStatus, NotReviewed> {
        self.token_reviews.fetch_add(1, Ordering::SeqCst);
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(now, Ordering::SeqCst);
        let takes = *self.takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        let user = self.users()?.remove(token);
        Ok(TokenReviewStatus {
            authenticated: Some(user.is_some()),
            audiences: user.as_ref().map(|user| user.audiences.clone()),
            user: user.map(|user| UserInfo {
                username: Some(user.name.to_owned()),
                ..UserInfo::default()
            }),
            error: None,
        })
    }

    async fn access(&self, user: &UserInfo, right: Right) -> Result<bool, NotReviewed> {
        self.access_reviews.fetch_add(1, Ordering::SeqCst);
        let users = self.users()?;
        let mut same = users
            .values()
            .filter(|u| Some(u.name) == user.username.as_deref());
        Ok(same.any(|user| user.rights.contains(&right.to_string())))
    }
}
