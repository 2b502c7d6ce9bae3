//! What the client, the index of each replica, the WorkerTask and the API server
//! say of one task. Asked from this process, so that a look costs little.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kube::Client;
use ottoscaler::proto::{
    ScaleRequest, WorkerStatusRequest, ottoscaler_service_client::OttoscalerServiceClient,
    scale_response::Status,
};
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

use crate::{
    contenders::{LEASE, client, runtime},
    processes::{Cell, SOON},
    support::wait_for,
};

/// Of one call, until the client asks another replica.
const CALL: Duration = Duration::from_secs(3);
/// Of one ScaleUp, whoever dies.
const ANSWERED: Duration = Duration::from_secs(60);

pub(super) struct Pictures {
    runtime: Runtime,
    /// As admin, past the proxies.
    client: Client,
    namespace: String,
}

/// By worker index: pod, attempt, state and its reason.
type Seen = BTreeMap<u64, [String; 4]>;

impl Pictures {
    pub(super) fn of(cell: &Cell) -> Self {
        let runtime = runtime();
        Self {
            client: runtime.block_on(client(cell.cluster.var("KUBECONFIG"))),
            namespace: cell.namespace.clone(),
            runtime,
        }
    }

    fn connect(&self, replica: &str) -> OttoscalerServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{replica}")).unwrap();
        let _within = self.runtime.enter();
        OttoscalerServiceClient::new(endpoint.connect_lazy())
    }

    fn get(&self, api: &str, what: &str) -> Result<Value, String> {
        let path = format!("/{api}/namespaces/{}/{what}", self.namespace);
        let request = http::Request::get(path).body(vec![]).unwrap();
        let answer = self.runtime.block_on(self.client.request(request));
        answer.map_err(|error| error.to_string())
    }

    /// The replica that holds the Lease, and its identity.
    pub(super) fn leader(&self) -> Option<(usize, String)> {
        let lease = format!("leases/{LEASE}");
        let lease = self.get("apis/coordination.k8s.io/v1", &lease).ok()?;
        let holder = lease["spec"]["holderIdentity"].as_str()?;
        let replica = holder.strip_prefix("replica-")?.split('_').next()?;
        Some((replica.parse().ok()?, holder.to_owned()))
    }

    /// Asks one replica after the other, always by the same request, until all
    /// workers are told; in how many calls. Whatever is told must be right.
    pub(super) fn insist(
        &self,
        replicas: &[String],
        task: &str,
        expected: &BTreeSet<String>,
    ) -> usize {
        let mut calls = 0;
        wait_for("the ScaleUp is answered in full", ANSWERED, || {
            let mut request = request(scale(task, expected.len()));
            let id = format!("request-of-{task}").parse().unwrap();
            request.metadata_mut().insert("request_id", id);
            let mut replica = self.connect(&replicas[calls % replicas.len()]);
            calls += 1;
            let answer = match self.runtime.block_on(replica.scale_up(request)) {
                Ok(answer) => answer.into_inner(),
                Err(status) => {
                    let passing = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled];
                    assert!(passing.contains(&status.code()), "{task}: {status}");
                    return None;
                }
            };
            let (kind, told) = (answer.status(), answer.worker_pod_names.len());
            let names: BTreeSet<String> = answer.worker_pod_names.into_iter().collect();
            let right = names.len() == told && names.is_subset(expected);
            assert!(right, "{task}: {kind:?}: {names:?}");
            match kind {
                Status::Success => {
                    assert_eq!(&names, expected, "{task}");
                    Some(())
                }
                Status::PartialSuccess => None,
                _ => panic!("{task}: {kind:?}: {}", answer.message),
            }
        });
        calls
    }

    /// Ends a task for good.
    pub(super) fn cancel(&self, replica: &str, task: &str) {
        wait_for("the task is cancelled", SOON, || {
            let mut replica = self.connect(replica);
            let call = replica.scale_down(request(scale(task, 0)));
            self.runtime.block_on(call).ok()
        });
    }

    /// Whether the WorkerTask and each replica tell what the API server lists now:
    /// that all workers wait for a node, at their first attempt.
    pub(super) fn agree(
        &self,
        replicas: &[String],
        task: &str,
        workers: usize,
    ) -> Result<(), String> {
        let pods = self.get("api/v1", &format!("pods?labelSelector=task-id%3D{task}"))?;
        let listed = of_pods(&pods, "uid");
        let waits = |w: &&[String; 4]| w[1..] == ["1", "Pending", "Unschedulable"];
        let waiting = listed.values().filter(waits).count();
        if (listed.len(), waiting) != (workers, workers) {
            let count = listed.len();
            return Err(format!("of {count} pods {waiting} wait at attempt 1"));
        }
        let stored = self.get(
            "apis/ottoscaler.io/v1alpha1",
            &format!("workertasks/{task}"),
        )?;
        let counts = &stored["status"]["counts"];
        if counts["total"] != workers || counts["pending"] != workers {
            return Err(format!("the WorkerTask counts {counts}"));
        }
        same("the WorkerTask", &of_task(&stored), &listed)?;
        let listed = of_pods(&pods, "name");
        for replica in replicas {
            same(replica, &self.told(replica, task)?, &listed)?;
        }
        Ok(())
    }

    fn told(&self, replica: &str, task: &str) -> Result<Seen, String> {
        let asked = WorkerStatusRequest {
            task_id: task.to_owned(),
            ..Default::default()
        };
        let mut replica = self.connect(replica);
        let call = replica.get_worker_status(request(asked));
        let answer = self.runtime.block_on(call).map_err(|s| s.to_string())?;
        let workers = answer.into_inner().workers.into_iter().map(|w| {
            let index = u64::try_from(w.worker_index).unwrap();
            let reason = w.error_message.split(':').next().unwrap().to_owned();
            let worker = [w.pod_name, w.attempt.to_string(), w.status, reason];
            (index, worker)
        });
        Ok(workers.collect())
    }
}

/// For workers that no node takes: their state stands still, and 100 cost little.
fn scale(task: &str, workers: usize) -> ScaleRequest {
    ScaleRequest {
        task_id: task.to_owned(),
        repository: "org/repo".to_owned(),
        commit_sha: "abc".to_owned(),
        worker_count: i32::try_from(workers).unwrap(),
        build_config: [(
            "OTTO_NODE_SELECTOR".into(),
            "kubernetes.io/arch=none".into(),
        )]
        .into(),
        ..Default::default()
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL);
    request
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn of_pods(list: &Value, pod: &str) -> Seen {
    let pods = list["items"].as_array().unwrap().iter().map(|p| {
        let (meta, status) = (&p["metadata"], &p["status"]);
        let labels = &meta["labels"];
        let worker = [
            text(&meta[pod]),
            text(&labels["ottoscaler.io/attempt"]),
            text(&status["phase"]),
            text(&status["conditions"][0]["reason"]),
        ];
        (text(&labels["worker-index"]).parse().unwrap(), worker)
    });
    pods.collect()
}

fn of_task(task: &Value) -> Seen {
    // Each is stored once, for all workers that have it.
    let reasons = &task["status"]["reasons"];
    let workers = task["status"]["workers"].as_array();
    let workers = workers.into_iter().flatten().map(|row| {
        let row = row.as_str().unwrap();
        let mut words = row.split(' ');
        let index = words.next().unwrap().parse().unwrap();
        let phase = words.next().unwrap().to_owned();
        let fields: BTreeMap<_, _> = words.map(|word| word.split_once('=').unwrap()).collect();
        let field = |key| fields.get(key).copied().unwrap_or_default().to_owned();
        let why = field("why").parse::<usize>();
        let reason = why.map_or(String::new(), |n| text(&reasons[n]["reason"]));
        (index, [field("uid"), field("attempt"), phase, reason])
    });
    workers.collect()
}

fn same(who: &str, seen: &Seen, listed: &Seen) -> Result<(), String> {
    let differs = listed.iter().find(|(n, w)| seen.get(n) != Some(w));
    match differs {
        Some((n, w)) => Err(format!(
            "{who} says of {n} {:?}, the list {w:?}",
            seen.get(n)
        )),
        None if seen.len() > listed.len() => Err(format!("{who} knows {} workers", seen.len())),
        None => Ok(()),
    }
}
