#![expect(clippy::unwrap_used)]
use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::watch;

use super::*;
use crate::{
    domain::pod::PodPhase,
    logs::read::machine::{PROBE_AFTER, REMOVED_AFTER, STATUS_POLL},
};

#[path = "tail_tests/ends.rs"]
mod ends;
#[path = "tail_tests/removed.rs"]
mod removed;

/// A node with one container, whose log grows and is rotated.
struct Node {
    /// All lines ever; what was opened reads them as they come.
    lines: watch::Sender<Vec<String>>,
    /// The first one of the newest file.
    newest: AtomicUsize,
    /// The first one of the container's instance, and of the one before.
    began: AtomicUsize,
    began_before: AtomicUsize,
    /// Follows see nothing of what comes after this line: they hang.
    hang_at: AtomicUsize,
    no_inotify: AtomicBool,
    /// What the node answers in place of the log, and whether as an error.
    refuses: Mutex<Option<(&'static str, bool)>>,
    /// The container has ended, which its status does not tell yet.
    stopped: AtomicBool,
    /// Opens that give nothing, ever.
    dead: AtomicUsize,
    /// Opens that the node answers with that it knows no such pod.
    unknown: AtomicUsize,
    /// An open reads only so many bytes, and ends.
    cut: Mutex<Vec<usize>>,
    /// Since when, and whether followed.
    opens: Mutex<Vec<(Option<i64>, bool)>>,
    pod: Mutex<Option<Arc<Pod>>>,
}

#[tonic::async_trait]
impl Source for Arc<Node> {
    async fn open(&self, _: &Pod, how: Open) -> Result<Reader, Error> {
        let Open {
            since,
            follow,
            previous,
        } = how;
        self.opens.lock().unwrap().push((since, follow));
        if self.pod.lock().unwrap().is_none() {
            return Err(Error::Gone);
        }
        if self.unknown.load(Relaxed) > 0 {
            self.unknown.fetch_sub(1, Relaxed);
            return Err(Error::Gone);
        }
        if self.dead.load(Relaxed) > 0 {
            self.dead.fetch_sub(1, Relaxed);
            return Ok(reader(stream::pending()));
        }
        if let Some((words, as_error)) = *self.refuses.lock().unwrap() {
            if as_error {
                return Err(Error::Refused);
            }
            return Ok(reader(stream::iter([Ok(words.as_bytes().to_vec())])));
        }
        if follow && self.no_inotify.load(Relaxed) {
            let text = b"failed to create fsnotify watcher: too many open files".to_vec();
            return Ok(reader(stream::iter([Ok(text)])));
        }
        let is_served = move |l: &String| {
            let stamp: jiff::Timestamp = l.split(' ').next().unwrap().parse().unwrap();
            since.is_none_or(|s| stamp.as_second() >= s)
        };
        let cut = self.cut.lock().unwrap().pop().unwrap_or(usize::MAX);
        let first = if previous {
            &self.began_before
        } else {
            &self.newest
        };
        let first = first.load(Relaxed);
        let instance = self.restarts();
        let state = (self.clone(), self.lines.subscribe(), first, cut);
        let bytes = stream::unfold(state, move |(node, mut lines, next, mut left)| async move {
            let hang_at = if follow {
                node.hang_at.load(Relaxed)
            } else {
                usize::MAX
            };
            let replaced = previous || node.restarts() > instance;
            let until = if replaced {
                node.began.load(Relaxed)
            } else {
                hang_at
            };
            let over = || {
                !follow
                    || replaced
                    || node.stopped.load(Relaxed)
                    || node
                        .pod
                        .lock()
                        .unwrap()
                        .as_ref()
                        .is_none_or(|p| p.worker_has_ended())
            };
            let line = loop {
                if left == 0 {
                    return None;
                }
                let line = lines
                    .borrow_and_update()
                    .get(next)
                    .filter(|_| next < until)
                    .cloned();
                match line {
                    Some(line) => break line,
                    None if over() => return None,
                    None => lines.changed().await.ok()?,
                }
            };
            let mut bytes = if is_served(&line) {
                format!("{line}\n").into_bytes()
            } else {
                Vec::new()
            };
            bytes.truncate(left);
            left -= bytes.len();
            Some((Ok(bytes), (node, lines, next + 1, left)))
        });
        Ok(reader(bytes.boxed()))
    }
}

fn reader(
    bytes: impl futures::Stream<Item = std::io::Result<Vec<u8>>> + Send + Unpin + 'static,
) -> Reader {
    Reader::new(Box::pin(bytes.into_async_read()))
}

#[derive(Clone)]
struct Here(Arc<Node>);

impl PodLookup for Here {
    fn latest(&self, _: &Pod) -> Option<Arc<Pod>> {
        self.0.pod.lock().unwrap().clone()
    }
}

fn text(second: i64) -> String {
    let at = jiff::Timestamp::from_second(1_790_000_000 + second).unwrap();
    format!("{at} line {second}")
}

impl Node {
    fn running() -> Arc<Self> {
        let pod = Pod {
            phase: PodPhase::Running,
            ..Pod::default()
        };
        Arc::new(Self {
            lines: watch::Sender::new(Vec::new()),
            newest: AtomicUsize::new(0),
            began: AtomicUsize::new(0),
            began_before: AtomicUsize::new(0),
            hang_at: AtomicUsize::new(usize::MAX),
            no_inotify: AtomicBool::new(false),
            refuses: Mutex::default(),
            stopped: AtomicBool::new(false),
            dead: AtomicUsize::new(0),
            unknown: AtomicUsize::new(0),
            cut: Mutex::default(),
            opens: Mutex::default(),
            pod: Mutex::new(Some(Arc::new(pod))),
        })
    }

    /// One line a second.
    fn print(&self, seconds: std::ops::Range<i64>) {
        self.lines
            .send_modify(|lines| lines.extend(seconds.map(text)));
    }

    fn rotate(&self) {
        self.newest.store(self.lines.borrow().len(), Relaxed);
    }

    fn restarts(&self) -> i32 {
        let pod = self.pod.lock().unwrap();
        pod.as_ref().map_or(0, |p| p.restart_count)
    }

    fn restart(&self) {
        let pod = Pod {
            phase: PodPhase::Running,
            restart_count: self.restarts() + 1,
            ..Pod::default()
        };
        *self.pod.lock().unwrap() = Some(Arc::new(pod));
        let now = self.lines.borrow().len();
        self.began_before
            .store(self.began.swap(now, Relaxed), Relaxed);
        self.newest.store(now, Relaxed);
        self.lines.send_modify(|_| {});
    }

    fn end(&self) {
        let pod = Pod {
            phase: PodPhase::Succeeded,
            restart_count: self.restarts(),
            ..Pod::default()
        };
        *self.pod.lock().unwrap() = Some(Arc::new(pod));
        self.lines.send_modify(|_| {});
    }

    /// Its status does not tell yet.
    fn stop(&self) {
        self.stopped.store(true, Relaxed);
        self.lines.send_modify(|_| {});
    }

    /// Three lines, which somebody followed.
    async fn read(self: &Arc<Self>) -> Tail<Arc<Self>, Here> {
        self.print(0..3);
        let mut tail = self.tail(None);
        reads(&mut tail, 0..3).await;
        tail
    }

    /// The same, and they were rotated away then.
    async fn read_and_rotated(self: &Arc<Self>) -> Tail<Arc<Self>, Here> {
        let tail = self.read().await;
        self.rotate();
        tail
    }

    fn tail(self: &Arc<Self>, at: Option<Place>) -> Tail<Arc<Self>, Here> {
        self.tail_of(0, at)
    }

    fn tail_of(self: &Arc<Self>, restart: i32, at: Option<Place>) -> Tail<Arc<Self>, Here> {
        Tail::new(
            Arc::default(),
            Arc::new(self.clone()),
            Here(self.clone()),
            restart,
            at,
        )
    }

    /// Where a reader stands who read so many lines.
    async fn after(self: &Arc<Self>, lines: usize) -> Option<Place> {
        let mut tail = self.tail(None);
        let mut at = None;
        for _ in 0..lines {
            let Next::Line(_, anchor) = tail.next().await else {
                unreachable!("no line")
            };
            at = Some(Place::After(anchor));
        }
        self.opens.lock().unwrap().clear();
        at
    }
}

/// What comes until the end, in short.
async fn rest(tail: &mut Tail<Arc<Node>, Here>) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let next = some(tail).await;
        let end = matches!(&*next, "end" | "gone");
        all.push(next);
        if end {
            return all;
        }
    }
}

/// These lines come next.
async fn reads(tail: &mut Tail<Arc<Node>, Here>, lines: std::ops::Range<i64>) {
    for n in lines {
        assert_eq!(some(tail).await, format!("line {n}"));
    }
}

/// What is read while something happens after a while.
async fn meanwhile<R, T>(
    read: impl Future<Output = R>,
    after: Duration,
    happens: impl FnOnce() -> T,
) -> (R, T) {
    let later = async {
        sleep(after).await;
        happens()
    };
    futures::future::join(read, later).await
}

async fn some(tail: &mut Tail<Arc<Node>, Here>) -> String {
    match tail.next().await {
        Next::Line(line, _) => String::from_utf8(line.text).unwrap(),
        Next::Gap(gap) => {
            let second = |t: Option<jiff::Timestamp>| t.map(|t| t.as_second() - 1_790_000_000);
            format!(
                "gap {} {:?} {:?}",
                gap.reason.as_str(),
                second(gap.from),
                second(gap.to)
            )
        }
        Next::End => "end".to_owned(),
        Next::Gone => "gone".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_rotation_what_is_there_is_read_on_without_a_gap() {
    let node = Node::running();
    node.print(0..5);
    node.rotate();
    node.print(5..20);
    // The last line that was read is in the newest file, those before it are not.
    let after = Node::after(&node, 10).await;
    let mut tail = node.tail(after);
    node.end();
    assert_eq!(
        rest(&mut tail).await,
        ["line 15", "line 16", "line 17", "line 18", "line 19", "end"]
    );
}

#[tokio::test(start_paused = true)]
async fn lines_rotated_away_while_nobody_read_are_one_gap() {
    let node = Node::running();
    node.print(0..10);
    let after = node.after(10).await;
    node.print(10..30);
    node.rotate();
    node.print(30..32);
    let mut tail = node.tail(after);
    assert_eq!(some(&mut tail).await, "gap rotated Some(9) Some(30)");
    assert_eq!(some(&mut tail).await, "line 30");
    node.print(32..33);
    node.end();
    assert_eq!(rest(&mut tail).await, ["line 31", "line 32", "end"]);
}

#[tokio::test(start_paused = true)]
async fn a_rotation_after_the_last_line_is_no_gap_until_a_line_comes() {
    let node = Node::running();
    node.print(0..3);
    let after = node.after(3).await;
    node.rotate();
    let mut tail = node.tail(after);
    let silent = timeout(Duration::from_secs(600), some(&mut tail)).await;
    assert!(silent.is_err());
    node.print(3..4);
    assert_eq!(some(&mut tail).await, "gap rotated Some(2) Some(3)");
    assert_eq!(some(&mut tail).await, "line 3");
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_back_a_little_is_no_gap() {
    let node = Node::running();
    node.lines.send_modify(|l| l.extend([0, 9, 2, 3].map(text)));
    let after = node.after(3).await;
    let mut tail = node.tail(after);
    assert_eq!(some(&mut tail).await, "line 3");
}

#[tokio::test(start_paused = true)]
async fn a_follow_that_missed_a_rotation_is_opened_again() {
    let node = Node::running();
    let mut tail = node.read().await;
    node.hang_at.store(3, Relaxed);
    node.print(3..4);
    let began = Instant::now();
    node.hang_at.store(3, Relaxed);
    let look = || node.hang_at.store(usize::MAX, Relaxed);
    let (line, ()) = meanwhile(some(&mut tail), PROBE_AFTER, look).await;
    assert_eq!(line, "line 3");
    assert!(began.elapsed() < PROBE_AFTER + 2 * PROBE_GRACE);
}

#[tokio::test(start_paused = true)]
async fn a_silent_log_is_looked_at_less_and_less_and_its_next_line_comes_at_once() {
    let node = Node::running();
    node.print(0..1);
    let mut tail = node.tail(None);
    some(&mut tail).await;
    let hour = Duration::from_secs(3_600);
    assert!(timeout(hour, some(&mut tail)).await.is_err());
    let opens = node.opens.lock().unwrap().clone();
    assert_eq!(opens.iter().filter(|(_, follow)| *follow).count(), 1);
    assert!((10..20).contains(&opens.len()), "{}", opens.len());
    let began = Instant::now();
    node.print(1..2);
    assert_eq!(some(&mut tail).await, "line 1");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_hangs_is_given_up() {
    for over in [false, true] {
        let node = Node::running();
        node.print(0..3);
        let after = node.after(2).await;
        if over {
            node.end();
        }
        node.dead.store(1, Relaxed);
        let began = Instant::now();
        assert_eq!(some(&mut node.tail(after)).await, "line 2");
        assert!(
            began.elapsed() < PROBE_AFTER + 2 * PROBE_GRACE,
            "over: {over}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_node_cannot_follow_its_logs_are_read_again_and_again() {
    let node = Node::running();
    node.no_inotify.store(true, Relaxed);
    node.print(0..2);
    let mut tail = node.tail(None);
    assert_eq!(
        (some(&mut tail).await, some(&mut tail).await),
        ("line 0".into(), "line 1".into())
    );
    node.print(2..3);
    let began = Instant::now();
    assert_eq!(some(&mut tail).await, "line 2");
    assert!(began.elapsed() < Duration::from_secs(1));
    node.end();
    assert_eq!(rest(&mut tail).await, ["end"]);
}

#[tokio::test(start_paused = true)]
async fn a_log_cut_off_at_any_byte_is_read_on_exactly() {
    let whole = (0..4).map(|n| text(n).len() + 1).sum();
    for cut in 0..whole {
        let node = Node::running();
        node.print(0..4);
        node.cut.lock().unwrap().push(cut);
        let mut tail = node.tail(None);
        for n in 0..4 {
            assert_eq!(some(&mut tail).await, format!("line {n}"), "cut at {cut}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_held_up_for_long_starts_anew_where_it_was() {
    let node = Node::running();
    node.print(0..4);
    let mut tail = node.tail(None);
    some(&mut tail).await;
    tail.was_held_up();
    for n in 1..4 {
        let Next::Line(line, _) = tail.next().await else {
            unreachable!("no line")
        };
        assert_eq!(line.text, format!("line {n}").into_bytes());
    }
    assert_eq!(node.opens.lock().unwrap().len(), 2);
}

/// Nobody knows what was rotated away before the first reader came. No clock but the node's
/// is looked at: the reader's may be anything.
#[tokio::test(start_paused = true)]
async fn who_comes_late_to_a_file_that_begins_late_tells_of_a_gap() {
    let tail = |node: &Arc<Node>, start: i64| {
        let mut tail = node.tail(None);
        Arc::make_mut(&mut tail.pod).started = Some(1_790_000_000 + start);
        tail.of_first_reader()
    };
    let two = async |mut tail| [some(&mut tail).await, some(&mut tail).await];
    let node = Node::running();
    node.print(20..23);
    assert_eq!(
        two(tail(&node, 9)).await,
        ["gap read late None Some(20)", "line 20"]
    );
    assert_eq!(two(tail(&node, 10)).await, ["line 20", "line 21"]);
    // Who came early to a container that was silent has seen that nothing went.
    for (came_at, first) in [
        (0, "line 20"),
        (9, "line 20"),
        (12, "gap read late None Some(20)"),
    ] {
        let node = Node::running();
        let silent = Duration::from_secs(20 - came_at);
        let read = two(tail(&node, 0));
        let (read, ()) = meanwhile(read, silent, || node.print(20..22)).await;
        assert_eq!(read[0], first, "{came_at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_know_a_pod_yet_is_asked_again() {
    let node = Node::running();
    node.print(0..3);
    let at = node.after(2).await;
    node.unknown.store(5, Relaxed);
    let mut tail = node.tail(at);
    assert_eq!(some(&mut tail).await, "line 2");
    node.end();
    assert_eq!(rest(&mut tail).await, ["end"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_is_not_asked_for_its_log() {
    let node = Node::running();
    *node.pod.lock().unwrap() = None;
    assert_eq!(
        rest(&mut node.tail(None)).await,
        ["gap pod gone None None", "gone"]
    );
    assert!(node.opens.lock().unwrap().is_empty());
}

const REMOVED: &str = "unable to retrieve container logs for containerd://4f1c";
