//! A worker that prints numbered lines and writes what it printed to the node.
//!
//! Environment: LINES (10), RATE in lines/s (0: as fast as it can), LENGTH of a
//! line in bytes (80), STREAM stdout|stderr|both, EXIT_CODE, TRUTH_DIR
//! (/truth), HOLD, POD_NAME or HOSTNAME. With HOLD the first line is followed by the others
//! once TRUTH_DIR has a file of that name.
use std::{
    env,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ottoscaler_partners::truth;

/// Between two looks for the file that ends a hold.
const LOOK: Duration = Duration::from_millis(100);

fn number<T: std::str::FromStr>(name: &str, default: T) -> anyhow::Result<T> {
    match env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => text
            .parse()
            .map_err(|_| anyhow::anyhow!("{name}: {text:?} is not a number")),
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let pod = env::var("POD_NAME")
        .or_else(|_| env::var("HOSTNAME"))
        .context("POD_NAME is not set")?;
    let (lines, rate, length) = (
        number("LINES", 10_u64)?,
        number("RATE", 0.0_f64)?,
        number("LENGTH", 80_usize)?,
    );
    let exit: u8 = number("EXIT_CODE", 0)?;
    let stream = env::var("STREAM").unwrap_or_else(|_| "stdout".to_owned());
    let dir = env::var("TRUTH_DIR").unwrap_or_else(|_| "/truth".to_owned());
    let mut truth = if Path::new(&dir).is_dir() {
        let path = Path::new(&dir).join(truth::file_name(&pod));
        Some(BufWriter::new(
            File::create(&path).with_context(|| path.display().to_string())?,
        ))
    } else {
        None
    };
    let hold = env::var("HOLD").ok().map(|name| Path::new(&dir).join(name));
    let mut start = Instant::now();
    for n in 1..=lines {
        if rate > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "counts are small")]
            let due = start + Duration::from_secs_f64((n - 1) as f64 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let mut text = format!("{pod} {n} ");
        while text.len() < length {
            text.push(char::from(
                b'a' + u8::try_from((text.len() as u64 + n) % 26)?,
            ));
        }
        let name = match stream.as_str() {
            "both" if n % 2 == 0 => "stderr",
            "both" => "stdout",
            one => one,
        };
        // One write per line, so that the runtime sees whole lines.
        let line = format!("{text}\n");
        match name {
            "stderr" => io::stderr().write_all(line.as_bytes())?,
            _ => {
                let mut out = io::stdout().lock();
                out.write_all(line.as_bytes())?;
                out.flush()?;
            }
        }
        if let Some(truth) = &mut truth {
            writeln!(truth, "{name} {text}")?;
            if rate > 0.0 {
                truth.flush()?;
            }
        }
        if let (1, Some(file)) = (n, &hold) {
            while !file.exists() {
                thread::sleep(LOOK);
            }
            start = Instant::now();
        }
    }
    if let Some(truth) = &mut truth {
        writeln!(truth, "end {exit}")?;
        truth.flush()?;
    }
    Ok(ExitCode::from(exit))
}
