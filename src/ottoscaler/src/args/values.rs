//! Kinds of values that several settings take: text → value.
use std::{collections::HashMap, time::Duration};

use crate::domain::quantity::{self, Quantity};

/// The text is no value of that kind; the setting's `value_name` says what is.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("not a value of that kind")]
pub(super) struct NotTaken;

/// By repository.
pub(super) type Weights = HashMap<String, u32>;

/// From 1.
pub(super) fn count(text: &str) -> Result<usize, NotTaken> {
    text.parse().ok().filter(|n| *n > 0).ok_or(NotTaken)
}

pub(super) fn duration(text: &str) -> Result<Duration, NotTaken> {
    quantity::duration(text).ok_or(NotTaken)
}

/// A quantity of which Kubernetes takes every digit.
pub(super) fn cpu(text: &str) -> Result<Quantity, NotTaken> {
    Quantity::parse(text)
        .filter(Quantity::is_exact)
        .ok_or(NotTaken)
}

/// A quantity of at least one byte.
pub(super) fn memory(text: &str) -> Result<Quantity, NotTaken> {
    Quantity::parse(text)
        .filter(Quantity::is_a_byte)
        .ok_or(NotTaken)
}

/// Whole bytes; `none` is 0.
pub(super) fn bytes(text: &str) -> Result<u64, NotTaken> {
    if text == "none" {
        return Ok(0);
    }
    let milli = Quantity::parse(text).ok_or(NotTaken)?.milli();
    u64::try_from(milli / 1_000).map_err(|_| NotTaken)
}

/// Whole bytes, from 1.
pub(super) fn stored_bytes(text: &str) -> Result<usize, NotTaken> {
    let bytes = usize::try_from(bytes(text)?).unwrap_or(usize::MAX);
    (bytes > 0).then_some(bytes).ok_or(NotTaken)
}

/// `a=1, b=2`: whole numbers from 1.
pub(super) fn weights(text: &str) -> Result<Weights, NotTaken> {
    let pairs = text.split(',').map(str::trim).filter(|p| !p.is_empty());
    let weight = |pair: &str| {
        let (key, weight) = pair.split_once('=')?;
        let weight = weight.trim().parse().ok().filter(|w| *w > 0)?;
        Some((key.trim().to_owned(), weight))
    };
    pairs.map(weight).collect::<Option<_>>().ok_or(NotTaken)
}
