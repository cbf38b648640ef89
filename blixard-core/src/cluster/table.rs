//! Decoding of the persistent tables. Theirs, in `imbl`, allocates whatever length the input
//! claims; these grow with what is really there.

use std::fmt;
use std::marker::PhantomData;

use imbl::{OrdMap, Vector};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// The most items allocated for before any of them was read.
const PREALLOCATED_MAX: usize = 1_024;

fn capacity(claimed: Option<usize>) -> usize {
    claimed.unwrap_or(0).min(PREALLOCATED_MAX)
}

/// Decodes a map.
///
/// # Errors
/// When the input is no map of these types.
pub(super) fn map<'de, D, K, V>(deserializer: D) -> Result<OrdMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + Clone,
    V: Deserialize<'de> + Clone,
{
    struct Map<K, V>(PhantomData<(K, V)>);

    impl<'de, K, V> Visitor<'de> for Map<K, V>
    where
        K: Deserialize<'de> + Ord + Clone,
        V: Deserialize<'de> + Clone,
    {
        type Value = OrdMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut rows = Vec::with_capacity(capacity(access.size_hint()));
            while let Some(row) = access.next_entry()? {
                rows.push(row);
            }
            Ok(rows.into())
        }
    }

    deserializer.deserialize_map(Map(PhantomData))
}

/// Decodes a list.
///
/// # Errors
/// When the input is no list of this type.
pub(super) fn list<'de, D, T>(deserializer: D) -> Result<Vector<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Clone,
{
    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de> + Clone> Visitor<'de> for List<T> {
        type Value = Vector<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::with_capacity(capacity(access.size_hint()));
            while let Some(item) = access.next_element()? {
                items.push(item);
            }
            Ok(items.into())
        }
    }

    deserializer.deserialize_seq(List(PhantomData))
}
