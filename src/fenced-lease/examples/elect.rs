//! Elects: run it several times, and end the one that leads.
//!
//! ```text
//! cargo run -p fenced-lease --example elect -- <namespace> <lease> <name>
//! ```
use std::time::Duration;

use anyhow::Context as _;
use fenced_lease::{Contender, Event, Identity, LeaderContext, LeaseRef};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let mut args = std::env::args().skip(1);
    let mut arg = |what| args.next().context(what);
    let (namespace, lease) = (arg("a namespace")?, arg("the name of a Lease")?);
    let name = arg("a name")?;

    // In a pod, Identity::of_pod lets a successor start as soon as this container has ended.
    let identity = Identity::new(&name);
    let observer = name.clone();
    let contender = Contender::builder(
        kube::Client::try_default().await?,
        LeaseRef::new(namespace, lease),
    )
    .identity(identity)
    .on_event(move |event| {
        if let Event::Ended { term, reason } = event {
            println!("{observer} no longer leads {term}: {}", reason.as_str());
        }
    })
    .build()?;

    let shutdown = CancellationToken::new();
    let leadership = contender.leadership();
    let follow = async {
        let mut leader = leadership.watch();
        while leader.changed().await.is_ok() {
            let leader = leader.borrow_and_update().clone();
            match leader.filter(|leader| !leader.is_local) {
                Some(leader) => println!("{name} follows {}", leader.term.holder),
                None => println!("{name} follows nobody"),
            }
        }
    };
    let work = {
        let name = name.clone();
        move |leader: LeaderContext| {
            let name = name.clone();
            async move {
                println!("{name} leads {}", leader.term);
                let mut tick = tokio::time::interval(Duration::from_secs(1));
                loop {
                    tokio::select! {
                        // A controller would reconcile here.
                        _ = tick.tick() => {}
                        () = leader.drain.cancelled() => break,
                        () = leader.lost.cancelled() => break,
                    }
                }
            }
        }
    };
    let stop = async {
        // A first signal drains and releases.
        let _ = terminated().await;
        shutdown.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = contender.run(work, shutdown.clone()) => {}
        () = follow => {}
        () = stop => {}
    }
    println!("{name} has ended");
    Ok(())
}

async fn terminated() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
