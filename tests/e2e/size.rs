//! How much a replica's process holds, and whether it grows.
use std::path::Path;

use super::processes::Cell;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    rss_kib: f64,
    descriptors: f64,
    sockets: f64,
    threads: f64,
    tasks: f64,
}

impl Size {
    pub fn of(cell: &Cell, replica: usize) -> Self {
        let pid = cell.replicas[replica].pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> f64 {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let links: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|f| std::fs::read_link(f.unwrap().path()).ok())
            .collect();
        let sockets = links
            .iter()
            .filter(|l| l.to_string_lossy().starts_with("socket:"));
        Self {
            rss_kib: field("VmRSS"),
            descriptors: links.len() as f64,
            sockets: sockets.count() as f64,
            threads: field("Threads"),
            tasks: cell.replicas[replica].metric("ottoscaler_tasks "),
        }
    }

    fn values(self) -> [(&'static str, f64); 5] {
        [
            ("rss_kib", self.rss_kib),
            ("descriptors", self.descriptors),
            ("sockets", self.sockets),
            ("threads", self.threads),
            ("tasks", self.tasks),
        ]
    }
}

/// Of all three replicas.
pub fn sample(cell: &Cell) -> Vec<Size> {
    (0..3).map(|r| Size::of(cell, r)).collect()
}

pub fn write_csv(path: &Path, samples: &[Vec<Size>]) {
    let mut raw = String::from("sample,replica,rss_kib,descriptors,sockets,threads,tasks\n");
    for (n, sample) in samples.iter().enumerate() {
        for (r, size) in sample.iter().enumerate() {
            let values: Vec<String> = size.values().iter().map(|(_, v)| v.to_string()).collect();
            raw.push_str(&format!("{n},{r},{}\n", values.join(",")));
        }
    }
    std::fs::write(path, raw).unwrap();
}

/// What there is more of than before, by more than `most`; memory is not counted.
pub fn not_more(before: &[Size], now: &[Size], most: f64) -> Result<(), String> {
    for (replica, (before, now)) in before.iter().zip(now).enumerate() {
        for ((what, was), (_, is)) in before.values().into_iter().zip(now.values()).skip(1) {
            if is - was > most {
                return Err(format!("replica-{replica} {what}: {was} before, now {is}"));
            }
        }
    }
    Ok(())
}

/// Fails where a fitted line through the samples rises by more than `most_kib` of
/// memory, or `most` of anything else.
pub fn must_not_grow(samples: &[Vec<Size>], most_kib: f64, most: f64) {
    for replica in 0..3 {
        for (k, (what, last)) in samples.last().unwrap()[replica].values().iter().enumerate() {
            let values: Vec<f64> = samples.iter().map(|s| s[replica].values()[k].1).collect();
            let growth = slope(&values) * values.len() as f64;
            println!("replica-{replica} {what}: {last}, fitted growth {growth:.1}");
            let bound = if *what == "rss_kib" { most_kib } else { most };
            assert!(growth < bound, "{what} grows: {values:?}");
        }
    }
}

/// Least squares, per step.
fn slope(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = |v: &mut dyn Iterator<Item = f64>| v.sum::<f64>() / n;
    let (mx, my) = (
        mean(&mut (0..values.len()).map(|i| i as f64)),
        mean(&mut values.iter().copied()),
    );
    let points = || {
        values
            .iter()
            .enumerate()
            .map(|(i, y)| (i as f64 - mx, y - my))
    };
    points().map(|(x, y)| x * y).sum::<f64>() / points().map(|(x, _)| x * x).sum::<f64>()
}
