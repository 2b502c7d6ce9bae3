//! When the caller stops waiting: its `grpc-timeout`.
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Status;

/// A unary call is worked on for at most so long, whatever its client gives: what
/// it waits for has come by then, or comes for its repeat.
pub(super) const LONGEST_CALL: Duration = Duration::from_secs(300);

const GRPC_TIMEOUT: &str = "grpc-timeout";
/// The protocol allows no more, and so no product below overflows.
const MAX_DIGITS: usize = 8;

/// The deadline of a call, in its request's extensions. None: the client gave none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline(pub(super) Instant);

impl Deadline {
    /// Reads the deadline of a call that begins now.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a value that the protocol does not allow. grpc-go
    /// refuses such a call too (as INTERNAL), while grpc-core goes on without a
    /// deadline, so that the call outlives its client. DEADLINE_EXCEEDED for one
    /// that is over.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let Some(value) = headers.get(GRPC_TIMEOUT) else {
            return Ok(None);
        };
        let timeout = value.to_str().ok().and_then(parse).ok_or_else(|| {
            Status::invalid_argument(
                "grpc-timeout: must be 1 to 8 digits and one of H, M, S, m, u, n",
            )
        })?;
        if timeout.is_zero() {
            return Err(exceeded());
        }
        // One beyond what the clock can tell is none.
        Ok(Instant::now().checked_add(timeout).map(Self))
    }

    /// What is left of it.
    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// What a call hears whose time is over.
pub(super) fn exceeded() -> Status {
    Status::deadline_exceeded("the call's deadline is over")
}

/// `TimeoutValue TimeoutUnit` of gRPC over HTTP/2.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > MAX_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3_600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_deadline_has_one_to_eight_digits_and_a_unit() {
        let hour = 3_600;
        for (text, seconds) in [
            ("1H", hour),
            ("99999999H", 99_999_999 * hour),
            ("2M", 120),
            ("00000003S", 3),
            ("4000m", 4),
            ("5000000u", 5),
        ] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for text in [
            "",
            "S",
            "5",
            "5s",
            "5 S",
            "+5S",
            "-5S",
            "1.5S",
            "0x5S",
            "5SS",
            "٣S",
            "100000000n",
            "18446744073709551615H",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_deadline_that_can_be_written_is_kept() {
        let mut headers = HeaderMap::new();
        assert_eq!(Deadline::of(&headers).unwrap(), None);
        headers.insert(GRPC_TIMEOUT, "99999999H".parse().unwrap());
        let deadline = Deadline::of(&headers).unwrap().unwrap();
        assert_eq!(deadline.left(), Duration::from_secs(99_999_999 * 3_600));
        headers.insert(GRPC_TIMEOUT, "0n".parse().unwrap());
        let status = Deadline::of(&headers).unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        headers.insert(
            GRPC_TIMEOUT,
            http::HeaderValue::from_bytes(b"\xff5S").unwrap(),
        );
        let status = Deadline::of(&headers).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
}
