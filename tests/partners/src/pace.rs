//! Lines as they arrive: how many, how fast, how old.
use serde::Serialize;

#[derive(Debug, Clone, Default)]
pub struct Pace {
    lines: u64,
    /// Nanoseconds since 1970.
    first: Option<i128>,
    last: i128,
    /// Of each line, in microseconds.
    ages: Vec<u32>,
}

#[derive(Debug, Serialize)]
pub struct Seen {
    pub lines: u64,
    /// From the first line to the last one.
    pub seconds: f64,
    /// From a line's timestamp to its arrival.
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Pace {
    pub fn arrived(&mut self, now: jiff::Timestamp, timestamp: &str) {
        self.lines += 1;
        let now = now.as_nanosecond();
        self.first.get_or_insert(now);
        self.last = now;
        if let Ok(printed) = timestamp.parse::<jiff::Timestamp>() {
            let age = (now - printed.as_nanosecond()) / 1_000;
            self.ages
                .push(u32::try_from(age.max(0)).unwrap_or(u32::MAX));
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.lines += other.lines;
        self.first = self.first.into_iter().chain(other.first).min();
        self.last = self.last.max(other.last);
        self.ages.extend(other.ages);
    }

    pub fn lines(&self) -> u64 {
        self.lines
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub fn seen(&self) -> Seen {
        let mut ages = self.ages.clone();
        ages.sort_unstable();
        let part = |permille: usize| {
            let at = (ages.len() * permille / 1_000).min(ages.len().saturating_sub(1));
            ages.get(at).map_or(0.0, |us| f64::from(*us) / 1e3)
        };
        Seen {
            lines: self.lines,
            seconds: (self.last - self.first.unwrap_or(self.last)) as f64 / 1e9,
            p50_ms: part(500),
            p99_ms: part(990),
            max_ms: part(1_000),
        }
    }
}
