//! A machine against a node that does anything.
use proptest::prelude::*;

use super::*;

/// A node in small, and the I/O around a machine that reads from it.
///
/// What it takes for granted is what the machine relies on: a kubelet ends the follow of a
/// container that runs no sooner than some seconds after it was opened, and a log is not
/// rotated within the seconds after that, nor within the first of the container; a follow that
/// hangs does not end; a read without following gives the whole file or fails.
struct World {
    machine: TailMachine,
    now: Duration,
    /// When lines were printed, each at a time of its own, and the first one of the newest
    /// file.
    lines: Vec<Duration>,
    newest: usize,
    stopped: bool,
    told: bool,
    gone: bool,
    cannot_follow: bool,
    /// So many opens fail like that.
    failures: (u8, Failure),
    open_takes: Duration,
    /// The next log that is opened breaks off after so many lines.
    breaks_after: Option<usize>,
    last_cut: Duration,
    opening: Option<(Duration, bool, Option<i64>)>,
    log: Option<Log>,
    probe: Option<(Duration, bool)>,
    opens: usize,
    /// The next line that is expected, and whether a gap came before it.
    next: usize,
    after_gap: bool,
    gaps: Vec<Reason>,
}

struct Log {
    follow: bool,
    since: Option<i64>,
    opened: Duration,
    next: usize,
    left: usize,
    hangs: bool,
}

impl World {
    fn new() -> Self {
        Self {
            machine: TailMachine::new(None).of_container_started(Some(START)),
            now: Duration::ZERO,
            lines: Vec::new(),
            newest: 0,
            stopped: false,
            told: false,
            gone: false,
            cannot_follow: false,
            failures: (0, Failure::Broken),
            open_takes: Duration::ZERO,
            breaks_after: None,
            last_cut: Duration::ZERO,
            opening: None,
            log: None,
            probe: None,
            opens: 0,
            next: 0,
            after_gap: false,
            gaps: Vec::new(),
        }
    }

    fn instance(&self) -> Instance {
        match (self.gone, self.told) {
            (true, _) => GONE,
            (_, true) => OVER,
            _ => RUNS,
        }
    }

    fn tell(&mut self, input: Input) {
        match self.machine.next(input, self.now) {
            Effect::Wait => {}
            Effect::Line(line, _) => self.take(&line),
            Effect::Gap(gap, line) => {
                if gap.reason == Reason::Rotated {
                    assert!(self.newest >= self.next, "a gap where nothing went");
                }
                self.gaps.push(gap.reason);
                self.after_gap = true;
                if let Some((line, _)) = line {
                    self.take(&line);
                }
            }
            Effect::Open { since, follow, .. } => {
                assert!(self.opening.is_none() && self.log.is_none(), "two are open");
                self.opens += 1;
                self.opening = Some((self.now + self.open_takes, follow, since));
            }
            Effect::Probe { sought, .. } => {
                assert!(self.probe.is_none(), "two probes");
                let since = sought.as_ref().and_then(Place::since);
                let mut resume = Resume::new(sought);
                let served = self.served(since);
                let more = served.map(|n| line(n, self.lines[n]));
                let steps = more.map(|line| resume.step(&line)).collect::<Vec<_>>();
                let found_more = self.gone || steps.iter().any(|step| *step != Step::Held);
                self.probe = Some((self.now + seconds(2), found_more));
            }
            Effect::Close(_) => self.close(),
        }
        if self.machine.end().is_some() {
            self.close();
        }
    }

    fn close(&mut self) {
        (self.opening, self.log, self.probe) = (None, None, None);
    }

    fn take(&mut self, line: &Line) {
        self.probe = None;
        let text = std::str::from_utf8(&line.text).unwrap();
        let n: usize = text[5..].parse().unwrap();
        if std::mem::take(&mut self.after_gap) {
            assert!(n >= self.next, "line {n} came before");
        } else {
            assert_eq!(n, self.next, "lines are missing, or repeated");
        }
        self.next = n + 1;
    }

    fn served(&self, since: Option<i64>) -> impl Iterator<Item = usize> {
        let lines = self.lines.iter().enumerate().skip(self.newest);
        lines
            .filter(move |(_, at)| is_since(**at, since))
            .map(|(n, _)| n)
    }

    /// The input that is there now, if there is one.
    fn input(&mut self) -> Option<Input> {
        let instance = self.instance();
        if let Some(log) = &mut self.log {
            let is_served = |n: &usize| is_since(self.lines[*n], log.since);
            if log.left == 0 {
                self.log = None;
                return Some(Input::Failed(Failure::Broken, instance));
            }
            let next = (log.next..self.lines.len()).find(is_served);
            match next.filter(|_| !log.hangs) {
                Some(n) => {
                    (log.next, log.left) = (n + 1, log.left - 1);
                    return Some(Input::Line(line(n, self.lines[n])));
                }
                None if !log.hangs && (!log.follow || self.stopped || self.gone) => {
                    self.log = None;
                    let rest = None;
                    return Some(Input::Ended { rest, instance });
                }
                None => {}
            }
        }
        if let Some((_, follow, since)) = self.opening.filter(|(at, ..)| *at <= self.now) {
            self.opening = None;
            let failure = match &mut self.failures {
                _ if self.gone => Some(Failure::Gone),
                (left, failure) if *left > 0 => {
                    *left -= 1;
                    Some(*failure)
                }
                _ => (follow && self.cannot_follow).then_some(Failure::CannotFollow),
            };
            if let Some(failure) = failure {
                return Some(Input::Failed(failure, instance));
            }
            self.log = Some(Log {
                follow,
                since,
                opened: self.now,
                next: self.newest,
                left: self.breaks_after.take().unwrap_or(usize::MAX),
                hangs: false,
            });
            return Some(Input::Opened(instance));
        }
        if let Some((_, found_more)) = self.probe.filter(|(at, _)| *at <= self.now) {
            self.probe = None;
            return Some(Input::Probed { found_more });
        }
        let is_due = self.machine.deadline().is_some_and(|at| at <= self.now);
        is_due.then_some(Input::Tick(instance))
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            for n in 0.. {
                assert!(n < 1_000, "it spins: {:?}", self.machine);
                match self.input() {
                    Some(input) => self.tell(input),
                    None => break,
                }
            }
            if self.now >= until || self.machine.end().is_some() {
                break;
            }
            let events = [
                self.machine.deadline(),
                self.opening.map(|(at, ..)| at),
                self.probe.map(|(at, _)| at),
                Some(until),
            ];
            self.now = events.into_iter().flatten().min().unwrap();
        }
        self.now = until;
    }

    fn happens(&mut self, what: u8, much: u8) {
        let pauses = self.now < self.last_cut + seconds(7) && self.last_cut > Duration::ZERO;
        match what % 16 {
            0..=3 if !self.stopped => {
                for n in self.lines.len()..self.lines.len() + usize::from(much % 4) + 1 {
                    let apart = Duration::from_nanos(u64::try_from(n).unwrap());
                    self.lines.push(self.now + apart);
                }
            }
            4 if !self.stopped && !pauses && self.now > seconds(11) => {
                self.newest = self.lines.len()
            }
            5 if !self.gone => self.failures = (much % 8, Failure::Gone),
            6 => self.failures = (much % 8, Failure::Refused),
            7 => self.failures = (much % 8, Failure::Broken),
            8 => self.breaks_after = Some(usize::from(much % 5)),
            9 => {
                if let Some(log) = &mut self.log {
                    log.left = log.left.min(usize::from(much % 3));
                }
            }
            10 => {
                if let Some(log) = &mut self.log {
                    log.hangs = true;
                }
            }
            11 if !self.stopped => {
                let now = self.now;
                let ends =
                    |log: &mut Log| log.follow && !log.hangs && now - log.opened >= seconds(7);
                if self.log.take_if(ends).is_some() {
                    self.last_cut = now;
                    let (rest, instance) = (None, self.instance());
                    self.tell(Input::Ended { rest, instance });
                }
            }
            12 => self.tell(Input::HeldUp),
            13 if much > 200 => self.cannot_follow = true,
            14 => self.open_takes = Duration::from_millis(u64::from(much) * 20),
            15 if much > 200 => self.stopped = true,
            15 if much > 100 => self.told = self.stopped,
            _ => {}
        }
    }
}

fn is_since(at: Duration, since: Option<i64>) -> bool {
    let second = i64::try_from(at.as_secs()).unwrap();
    since.is_none_or(|since| START + second >= since)
}

/// Runs a script: what happens, how much, and how long until the next.
fn run(script: &[(u8, u8, u8)], goes: bool) -> World {
    let mut world = World::new();
    for (what, much, then) in script {
        world.happens(*what, *much);
        world.pass(Duration::from_millis(match then {
            0..=99 => 0,
            100..=199 => u64::from(*then) * 10,
            _ => (u64::from(*then) - 199) * 1_000,
        }));
    }
    let began = (world.opens, world.now);
    world.pass(seconds(600));
    // Each open that gives nothing is followed by a longer wait, up to 5 s.
    let opens = world.opens - began.0;
    assert!(opens < 150, "{opens} opens in ten minutes");
    (world.stopped, world.failures.0) = (true, 0);
    if goes {
        world.pass(seconds(40));
        world.gone = true;
    } else {
        world.told = true;
    }
    let began = world.now;
    world.pass(MAX_PROBE_AFTER + seconds(60));
    assert!(
        world.machine.end().is_some(),
        "no end since {began:?}: {:?}",
        world.machine
    );
    // An empty file that nobody has read a line of is that of a container that printed none.
    let looks_empty = world.next == 0 && world.newest == world.lines.len();
    if !world.after_gap && !looks_empty {
        assert_eq!(
            world.next,
            world.lines.len(),
            "lines are missing at the end"
        );
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn whatever_happens_lines_come_once_and_in_order_or_a_gap_is_told_and_it_ends(
        script in prop::collection::vec(any::<(u8, u8, u8)>(), 0..80),
        goes in any::<bool>(),
    ) {
        run(&script, goes);
    }
}

/// A property that never meets a case shows nothing.
#[test]
fn the_scripts_come_to_ends_gaps_and_removals() {
    let mut random = 7_u64;
    let mut byte = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        u8::try_from(random >> 56).unwrap()
    };
    let mut seen = std::collections::BTreeSet::new();
    for goes in [false, true].into_iter().cycle().take(400) {
        let script: Vec<_> = (0..60).map(|_| (byte(), byte(), byte())).collect();
        let world = run(&script, goes);
        let end = world.machine.end().unwrap();
        seen.insert(format!("{end:?} {}", world.gaps.is_empty()));
        seen.extend(world.gaps.iter().map(|gap| gap.as_str().to_owned()));
    }
    for case in [
        "Complete true",
        "Complete false",
        "Gone false",
        "rotated",
        "read late",
        "pod gone",
        "log removed",
    ] {
        assert!(seen.contains(case), "{case}: {seen:?}");
    }
}
