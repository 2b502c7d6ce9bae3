//! Tasks that come, run and are forgotten, 20 a second in the full run: nothing of
//! them stays.
use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch},
};
use ottoscaler_partners::proto::{
    ScaleRequest, ottoscaler_service_client::OttoscalerServiceClient, scale_response,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::{
    contenders::{client, runtime},
    processes::Cell,
    size::{self, must_not_grow, write_csv},
    support::{count_of, is_full, pass, wait_for, wait_for_ok},
};

const SAMPLES: u32 = 60;

#[derive(Default)]
struct Counts {
    asked: AtomicUsize,
    made: AtomicUsize,
}

/// Asks for a worker in a task of its own, again and again, of one replica after the
/// other.
async fn ask(addresses: Vec<String>, counts: &Counts, per_second: u32, until: Instant) {
    let mut services = Vec::new();
    for address in addresses {
        let url = format!("http://{address}");
        services.push(OttoscalerServiceClient::connect(url).await.unwrap());
    }
    let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
    let mut calls = JoinSet::new();
    while Instant::now() < until {
        tick.tick().await;
        let n = counts.asked.fetch_add(1, Ordering::Relaxed);
        calls.spawn(scale_up(services[n % services.len()].clone(), n));
        while let Some(made) = calls.try_join_next() {
            counts
                .made
                .fetch_add(usize::from(made.unwrap()), Ordering::Relaxed);
        }
    }
    while let Some(made) = calls.join_next().await {
        counts
            .made
            .fetch_add(usize::from(made.unwrap()), Ordering::Relaxed);
    }
}

async fn scale_up(mut service: OttoscalerServiceClient<Channel>, n: usize) -> bool {
    let request = ScaleRequest {
        task_id: format!("soak-{n}"),
        repository: format!("org/repo-{}", n % 7),
        commit_sha: "abc".to_owned(),
        worker_count: 1,
        ..ScaleRequest::default()
    };
    let answer = service.scale_up(request).await;
    match answer.map(tonic::Response::into_inner) {
        Ok(answer) if answer.status() == scale_response::Status::Success => true,
        other => {
            println!("task {n}: {other:?}");
            false
        }
    }
}

/// Says for the kubelet that whoever runs has succeeded, a second at the earliest
/// after the last time.
async fn succeed(pods: Api<Pod>) {
    let status = json!({"status": {"phase": "Succeeded", "containerStatuses": [{
        "name": "worker", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}});
    let running = ListParams::default().fields("status.phase=Running");
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        let Ok(all) = pods.list_metadata(&running).await else {
            continue;
        };
        // One that went meanwhile needs none.
        let ends = all.items.iter().map(|pod| {
            let (pods, name, status) = (&pods, pod.name_any(), &status);
            async move {
                let _ = pods
                    .patch_status(&name, &Default::default(), &Patch::Merge(status))
                    .await;
            }
        });
        futures::future::join_all(ends).await;
    }
}

/// By the audit log, and how often each.
fn pods_created(cell: &Cell) -> HashMap<String, usize> {
    let mut log = File::open(cell.cluster.audit_log()).unwrap();
    log.seek(SeekFrom::Start(cell.audit_from)).unwrap();
    let mut found = HashMap::new();
    // Of half an hour it is too long to be held.
    for line in BufReader::new(log).lines().map(Result::unwrap) {
        if !line.contains(r#""verb":"create""#) || !line.contains("otto-agent-soak-") {
            continue;
        }
        let event: Value = serde_json::from_str(&line).unwrap();
        let of = &event["objectRef"];
        if of["resource"] == "pods"
            && of["subresource"].is_null()
            && event["responseStatus"]["code"] == 201
        {
            let name = of["name"].as_str().unwrap().to_owned();
            *found.entry(name).or_default() += 1;
        }
    }
    found
}

/// Half an hour in the full run.
#[test]
fn tasks_that_are_forgotten_leave_nothing_behind() {
    let full = is_full();
    let seconds = count_of("OTTO_TEST_TASK_SECONDS", if full { 1_800 } else { 40 });
    // Few, where other tests have the machine too.
    let per_second = count_of("OTTO_TEST_TASKS_PER_SECOND", if full { 20 } else { 4 });
    let per_second = u32::try_from(per_second).unwrap();
    let time = Duration::from_secs(seconds as u64);
    let ttl = Duration::from_secs(if full { 60 } else { 5 });
    let kept = format!("{}s", ttl.as_secs());
    let settings = [
        ("TASK_TTL", kept.as_str()),
        ("LOG_DRAIN_TIMEOUT", "1s"),
        ("LOG_LEVEL", "warn"),
    ];
    let cell = Cell::start("tasks", &settings);
    let before = size::sample(&cell);
    let runtime = runtime();
    let pods: Api<Pod> = runtime.block_on(async {
        Api::namespaced(
            client(cell.cluster.var("KUBECONFIG")).await,
            &cell.namespace,
        )
    });
    let finisher = runtime.spawn(succeed(pods));
    let addresses: Vec<String> = cell.replicas.iter().map(|r| r.address.clone()).collect();
    let (counts, began) = (Counts::default(), Instant::now());
    // As many come as go from then on.
    let warm = ttl * 2 + time / 8;
    let samples = std::thread::scope(|s| {
        s.spawn(|| runtime.block_on(ask(addresses, &counts, per_second, began + time)));
        pass(warm);
        let mut samples = Vec::new();
        for _ in 0..SAMPLES {
            pass((time - warm) / SAMPLES);
            samples.push(size::sample(&cell));
        }
        samples
    });
    let (asked, made) = (
        counts.asked.load(Ordering::Relaxed),
        counts.made.load(Ordering::Relaxed),
    );
    println!(
        "{made} of {asked} tasks in {:.0} s, each kept for {kept}, {} samples",
        began.elapsed().as_secs_f64(),
        samples.len()
    );
    if let Ok(dir) = std::env::var("OTTO_TEST_SAMPLES_DIR") {
        write_csv(&PathBuf::from(dir).join("tasks.csv"), &samples);
    }
    let wanted = seconds * per_second as usize;
    assert!(made * 10 >= wanted * 9 && made * 100 >= asked * 99);
    let count = |what: &str| {
        let all = cell.cluster.json(&["-n", &cell.namespace, "get", what]);
        all["items"].as_array().unwrap().len()
    };
    wait_for("all is forgotten", ttl + Duration::from_secs(60), || {
        (count("workertasks") == 0 && count("pods") == 0).then_some(())
    });
    finisher.abort();
    let pods = pods_created(&cell);
    assert!(
        pods.values().all(|times| *times == 1),
        "some were made twice"
    );
    assert!((made..=asked).contains(&pods.len()), "{} pods", pods.len());
    println!(
        "pods by the audit log: {}, tasks in all: {asked}",
        pods.len()
    );
    // What is counted is as it was, once idle connections have been closed (after
    // 90 s), but for what a leader has open: 12 tokio tasks more than a follower.
    let within = Duration::from_secs(150);
    wait_for_ok("everything of them is closed", within, || {
        size::not_more(&before, &size::sample(&cell), 24.0)
    });
    // Of what leaks with each task there would be at least 100 bytes. A hundred tasks
    // tell less than that: a line through their counts swings by more than the bound
    // (12.1 seen, downwards), and a young heap grows in steps (2.8 MiB seen, then none).
    let sampled = (time - warm).as_secs_f64() * f64::from(per_second);
    let (most_kib, most) = if full {
        (sampled * 0.1, 12.0)
    } else {
        (8_192.0, f64::INFINITY)
    };
    must_not_grow(&samples, most_kib, most);
}
