//! The certificate of the replicas, and then its authority, are replaced while stock clients call
//! and a stream is open.
use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{
    Clients, Running, accepted_and_failed, addresses,
    authority::{Authority, NAME, put_file},
    expect_stored, start,
};
use crate::{
    processes::{Cell, Process},
    support::{pass, program, wait_for},
};

/// The replicas look at their files every five seconds.
const NOTICED: Duration = Duration::from_secs(30);
/// A while under load between two steps.
const LOAD: Duration = Duration::from_secs(2);
const EXPIRY: &str = "ottoscaler_tls_certificate_expiry_timestamp_seconds";
const REFUSED: &str =
    "ottoscaler_connections_refused_total{port=\"grpc\",reason=\"tls_handshake\"}";

/// A stream that ends with the test.
struct Open(Child);

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until every replica serves with a certificate that expires at another time.
fn wait_for_certificate(cell: &Cell, before: &[f64]) {
    wait_for("the certificate is in use", NOTICED, || {
        let now = cell.replicas.iter().map(|replica| replica.metric(EXPIRY));
        now.zip(before)
            .all(|(now, before)| now != *before)
            .then_some(())
    });
}

fn expiries(cell: &Cell) -> Vec<f64> {
    cell.replicas.iter().map(|r| r.metric(EXPIRY)).collect()
}

/// Calls a replica with a certificate of its own, and returns whether it was answered.
fn answered(clients: &Clients, replica: &Process, own: &str) -> bool {
    let file = |name: &str| clients.file(name);
    let out = Command::new(program("ottoctl"))
        .args(["--server", &replica.address, "--timeout", "3"])
        .args(["--ca-file", &file("trusted.crt"), "--server-name", NAME])
        .args(["--cert-file", &file(&format!("{own}.crt"))])
        .args(["--key-file", &file(&format!("{own}.key"))])
        .args([
            "--token-file",
            &file("token"),
            "status",
            "--state",
            "failed",
        ])
        .output()
        .unwrap();

    out.status.success()
}

#[test]
fn a_certificate_and_its_authority_are_replaced_under_load_and_no_call_fails() {
    let next = Authority::new();
    let clients = Clients::build();
    let folder = clients.files.path();
    let old = &clients.authority;
    let both = old.pem() + &next.pem();
    // The clients trust both all the while, as clients do in a rotation.
    put_file(folder, "trusted.crt", &both);
    for (name, authority) in [("old", old), ("next", &next)] {
        let own = authority.issue("client.example", 2090);
        put_file(folder, &format!("{name}.crt"), &own.certificate);
        put_file(folder, &format!("{name}.key"), &own.key);
    }
    let (cell, _) = start("rotation", &clients);
    let servers = addresses(&cell);
    let running: Vec<_> = clients
        .commands(&servers, "scale", None)
        .into_iter()
        .map(|(name, command)| (name, Running::start(command)))
        .collect();
    let mut stream = Open(
        Command::new(program("ottoctl"))
            .args(["--server", &cell.replicas[0].address])
            .args([
                "--ca-file",
                &clients.file("trusted.crt"),
                "--server-name",
                NAME,
            ])
            .args(["--token-file", &clients.file("token"), "status", "--watch"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    pass(LOAD);
    let put = |name: &str, text: &str| put_file(folder, name, text);

    let of_same_authority = old.issue(NAME, 2091);
    let before = expiries(&cell);
    put("tls.crt", &of_same_authority.certificate);
    put("tls.key", &of_same_authority.key);
    wait_for_certificate(&cell, &before);
    pass(LOAD);
    assert!(answered(&clients, &cell.replicas[0], "old"));
    assert!(!answered(&clients, &cell.replicas[0], "next"));

    put("ca.crt", &both);
    for replica in &cell.replicas {
        wait_for("both authorities are trusted", NOTICED, || {
            answered(&clients, replica, "next").then_some(())
        });
    }
    let of_next_authority = next.issue(NAME, 2092);
    let before = expiries(&cell);
    put("tls.crt", &of_next_authority.certificate);
    put("tls.key", &of_next_authority.key);
    wait_for_certificate(&cell, &before);
    pass(LOAD);
    put("ca.crt", &next.pem());
    for replica in &cell.replicas {
        wait_for("the old authority is refused", NOTICED, || {
            (!answered(&clients, replica, "old")).then_some(())
        });
        assert!(answered(&clients, replica, "next"));
        assert!(replica.metric(REFUSED) > 0.0);
    }
    pass(LOAD);

    assert!(stream.0.try_wait().unwrap().is_none(), "the stream goes on");
    let (accepted, failed) = accepted_and_failed(running);
    println!(
        "clients: {} tasks through a new certificate and a new authority, {} failed calls",
        accepted.len(),
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:#?}");
    expect_stored(&cell, &accepted);
}
