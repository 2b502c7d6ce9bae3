#![expect(clippy::unwrap_used)]
use std::io;

use kube::error::Status;
use kube_leader_election::Error as Crate;

use super::*;

const MARKER: &str = "s3cr3t";

fn status() -> Box<Status> {
    let status =
        serde_json::json!({"status": "Failure", "message": MARKER, "reason": MARKER, "code": 403});
    Box::new(serde_json::from_value(status).unwrap())
}

fn refused() -> kube::Error {
    kube::Error::Service(Box::new(io::Error::from(io::ErrorKind::ConnectionRefused)))
}

fn unread() -> serde_json::Error {
    serde_json::from_str::<u8>(&format!("{MARKER:?}")).unwrap_err()
}

/// An error that names another one as its source.
#[derive(Debug, thiserror::Error)]
#[error("outer")]
struct Outer(#[source] kube::Error);

#[test]
fn what_the_api_server_answered_is_its_code_and_no_more() {
    let answered = "the API server answered 403";
    let errors: [Box<dyn Error>; 4] = [
        Box::new(kube::Error::Api(status())),
        Box::new(Crate::RenewLease(kube::Error::Api(status()))),
        Box::new(Crate::ApiError { response: status() }),
        Box::new(Outer(kube::Error::Api(status()))),
    ];
    for error in errors {
        assert_eq!(Loggable(error.as_ref()).to_string(), answered);
    }
    let error = Crate::GetLease(kube::Error::SerdeError(unread()));
    let text = Loggable(&error).to_string();
    assert_eq!(text, "the API server's answer cannot be decoded");
    let error = Crate::SerdeError(unread());
    assert!(!Loggable(&error).to_string().contains(MARKER));
}

#[test]
fn what_the_network_says_is_told() {
    let told = "the API server is not reached: connection refused";
    for error in [
        Crate::CreateLease(refused()),
        Crate::AcquireLease(refused()),
        Crate::ReleaseLease(refused()),
        Crate::Kube(refused()),
    ] {
        assert_eq!(Loggable(&error).to_string(), told);
    }
}

#[test]
fn other_errors_are_told_as_they_are() {
    let error = io::Error::other("no disk");
    assert_eq!(Loggable(&error).to_string(), "no disk");
}
