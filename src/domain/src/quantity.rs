//! Parsing of amounts that are written as text: Kubernetes quantities and durations.
use std::{cmp::Ordering, fmt, time::Duration};

/// The largest amount that Kubernetes can hold: 63 bits.
const LARGEST: u128 = i64::MAX as u128;
/// The longest text that is parsed, in bytes. Every amount that Kubernetes can hold is shorter, and
/// the bound keeps the arithmetic within its types.
const MAX_TEXT: usize = 32;

/// A `Quantity` is a Kubernetes quantity that keeps its text as it was written.
///
/// Quantities are compared in thousandths, rounded up, so that an amount that is a little
/// more than a bound stays more than it.
#[derive(Debug, Clone)]
pub struct Quantity {
    text: String,
    milli: u128,
    exact: bool,
}

impl Quantity {
    /// Parses a quantity like `500m`, `1.5`, `128Mi` or `1e3`. Returns None for what is not
    /// a quantity, for zero, and for more than Kubernetes can hold.
    pub fn parse(text: &str) -> Option<Self> {
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if text.len() > MAX_TEXT || fraction.contains('.') {
            return None;
        }
        let (times, per) = scale(suffix)?;
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let divisor = 10_u128
            .checked_pow(u32::try_from(fraction.len()).ok()?)?
            .checked_mul(per)?;
        let product = digits.checked_mul(times)?;
        let milli = product.div_ceil(divisor);
        (milli > 0 && milli <= LARGEST * 1_000).then(|| Self {
            text: text.to_owned(),
            milli,
            exact: product.is_multiple_of(divisor),
        })
    }

    /// Returns the text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the amount in thousandths, rounded up.
    pub fn milli(&self) -> u128 {
        self.milli
    }

    /// Reports whether the amount is a whole number of thousandths, as CPU must be.
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Reports whether the amount is at least one byte: `100m` of memory is a typo of
    /// `100M`.
    pub fn is_a_byte(&self) -> bool {
        self.milli >= 1_000
    }
}

/// Returns how many thousandths one unit of a suffix is, as a fraction.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let decimal = |power: u32| Some((1_000 * 10_u128.checked_pow(power)?, 1));
    let binary = |power: u32| Some((1_000_u128 << (10 * power), 1));
    match suffix {
        "n" => Some((1, 1_000_000)),
        "u" => Some((1, 1_000)),
        "m" => Some((1, 1)),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let power: u8 = digits.parse().ok().filter(|p| *p <= 18)?;
            decimal(power.into())
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.milli == other.milli
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.milli.cmp(&other.milli)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Parses a duration like `1h30m` or `250ms`, or a bare number of seconds. Returns None
/// for anything else, a negative duration included.
pub fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let signed = text.parse::<jiff::SignedDuration>().ok()?;
    Duration::try_from(signed).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn milli(text: &str) -> Option<u128> {
        Quantity::parse(text).map(|q| q.milli())
    }

    #[test]
    fn quantities_are_exact() {
        for (text, expected) in [
            ("500m", 500),
            ("1", 1_000),
            ("0.5", 500),
            (".5", 500),
            ("2.", 2_000),
            ("2000000n", 2),
            ("3000u", 3),
            ("1k", 1_000_000),
            ("128Mi", 134_217_728_000),
            ("0.5Gi", 536_870_912_000),
            ("1e3", 1_000_000),
            ("2E1", 20_000),
            ("1E", 1_000_000_000_000_000_000_000),
            ("7Ei", 8_070_450_532_247_928_832_000),
        ] {
            assert_eq!(milli(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "", ".", "m", "0", "0Mi", "-1", "+1", "1.2.3", "1 Gi", "1gi", "1K", "8Ei", "1e19",
            "1e", "e3", "٣",
        ] {
            assert_eq!(milli(text), None, "{text:?}");
        }
        assert_eq!(milli(&"1".repeat(33)), None);
    }

    #[test]
    fn the_same_amount_written_otherwise_is_equal() {
        let parse = |t| Quantity::parse(t).unwrap();
        assert_eq!(parse("1024Mi"), parse("1Gi"));
        assert!(parse("1G") < parse("1Gi"));
        assert!(parse("0.1m").milli() == 1 && !parse("0.1m").is_exact());
        // A little more than a bound is more.
        assert!(parse("1000.0000001m") > parse("1") && parse("1") == parse("1000m"));
        assert!(parse("1k").is_a_byte() && !parse("999m").is_a_byte());
    }

    #[test]
    fn a_duration_is_read_in_both_forms() {
        assert_eq!(duration("90"), Some(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("soon"), None);
        assert_eq!(duration("-5s"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,40}") {
            let _ = (Quantity::parse(&text), duration(&text));
        }

        #[test]
        fn order_is_the_numbers(a in 1u64..1 << 40, b in 1u64..1 << 40) {
            let parse = |n: u64| Quantity::parse(&format!("{n}Ki")).unwrap();
            prop_assert_eq!(parse(a).cmp(&parse(b)), a.cmp(&b));
            prop_assert_eq!(parse(a).milli(), u128::from(a) * 1024 * 1000);
        }
    }
}
