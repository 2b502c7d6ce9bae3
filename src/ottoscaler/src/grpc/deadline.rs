//! The deadline of a call, which its client gives as `grpc-timeout`.
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Status;

/// The longest time that the server works on a unary call, whatever timeout its client gives.
/// What the call waits for has happened by then, or is found by the client's retry.
pub(super) const MAX_UNARY_CALL: Duration = Duration::from_secs(300);

const GRPC_TIMEOUT: &str = "grpc-timeout";
/// The protocol allows no more digits. Within this limit no product in [`parse_timeout`]
/// overflows.
const MAX_TIMEOUT_DIGITS: usize = 8;

/// The deadline of a call. It is stored in the extensions of the request, and missing there when
/// the client gave none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CallDeadline(pub(super) Instant);

impl CallDeadline {
    /// Reads the deadline of a call that begins now.
    ///
    /// # Errors
    /// Returns INVALID_ARGUMENT for a value that the protocol does not allow. grpc-go refuses
    /// such a call too (as INTERNAL); grpc-core continues without a deadline, so the call can
    /// outlive its client. Returns DEADLINE_EXCEEDED for a timeout of zero.
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let Some(value) = headers.get(GRPC_TIMEOUT) else {
            return Ok(None);
        };
        let timeout = value.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
            Status::invalid_argument(
                "grpc-timeout: must be 1 to 8 digits and one of H, M, S, m, u, n",
            )
        })?;
        if timeout.is_zero() {
            return Err(deadline_exceeded());
        }
        // A deadline that the clock cannot represent never comes.
        Ok(Instant::now().checked_add(timeout).map(Self))
    }

    /// Returns the time until the deadline, zero once it has passed.
    pub(super) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Returns the status of a call whose deadline has passed.
pub(super) fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("the call's deadline is over")
}

/// Parses `TimeoutValue TimeoutUnit` of the gRPC over HTTP/2 protocol.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > MAX_TIMEOUT_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
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
            assert_eq!(
                parse_timeout(text),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        assert_eq!(
            parse_timeout("99999999n"),
            Some(Duration::from_nanos(99_999_999))
        );
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
            assert_eq!(parse_timeout(text), None, "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_deadline_that_can_be_written_is_kept() {
        let mut headers = HeaderMap::new();
        assert_eq!(CallDeadline::from_headers(&headers).unwrap(), None);
        headers.insert(GRPC_TIMEOUT, "99999999H".parse().unwrap());
        let deadline = CallDeadline::from_headers(&headers).unwrap().unwrap();
        assert_eq!(
            deadline.remaining(),
            Duration::from_secs(99_999_999 * 3_600)
        );
        headers.insert(GRPC_TIMEOUT, "0n".parse().unwrap());
        let status = CallDeadline::from_headers(&headers).unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        headers.insert(
            GRPC_TIMEOUT,
            http::HeaderValue::from_bytes(b"\xff5S").unwrap(),
        );
        let status = CallDeadline::from_headers(&headers).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
}
