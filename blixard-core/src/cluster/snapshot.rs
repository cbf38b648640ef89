//! Encoding of entries and snapshots.
