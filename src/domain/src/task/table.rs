//! Stores once what many workers of a task share: reasons with their messages, and nodes.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema;

// Without documentation, which would become part of the CustomResourceDefinition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub(super) struct Reason {
    #[serde(default)]
    #[schemars(length(max = schema::REASON))]
    pub(super) reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = schema::REASON))]
    pub(super) message: String,
    /// What a newer version says of it.
    #[serde(flatten)]
    #[schemars(skip)]
    pub(super) rest: BTreeMap<String, Value>,
}

/// A `Table` gives each different value a number.
#[derive(Debug)]
pub(super) struct Table<T> {
    values: Vec<T>,
    numbers: HashMap<T, u32>,
    /// The places that nothing refers to any more.
    free: Vec<u32>,
}

impl<T: Clone + Default + Eq + Hash> Table<T> {
    /// Creates a table in which the values in these places of a stored one stay there.
    pub(super) fn new(stored: &[T], places: &BTreeSet<usize>) -> Self {
        let taken = places.range(..stored.len());
        let end = taken.clone().next_back().map_or(0, |last| last + 1);
        let mut table = Self {
            values: vec![T::default(); end],
            numbers: HashMap::new(),
            free: Vec::new(),
        };
        for place in (0..end).rev() {
            let number = u32::try_from(place).unwrap_or(u32::MAX);
            if places.contains(&place) {
                table.values[place].clone_from(&stored[place]);
                table.numbers.insert(stored[place].clone(), number);
            } else {
                table.free.push(number);
            }
        }
        table
    }

    pub(super) fn number(&mut self, value: T) -> u32 {
        let next = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        let (values, free) = (&mut self.values, &mut self.free);
        *self
            .numbers
            .entry(value)
            .or_insert_with_key(|value| match free.pop() {
                Some(place) => {
                    values[place as usize].clone_from(value);
                    place
                }
                None => {
                    values.push(value.clone());
                    next
                }
            })
    }

    pub(super) fn into_values(self) -> Vec<T> {
        self.values
    }
}
