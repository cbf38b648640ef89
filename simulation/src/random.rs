//! Seeded randomness: one stream for each purpose, so that one more draw in one place changes no
//! other.

use std::sync::{Arc, Mutex, PoisonError};

use blixard_node::platform::RandomSource;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// A stream of random numbers. Cloning shares it.
#[derive(Clone)]
pub struct Stream(Arc<Mutex<ChaCha8Rng>>);

impl Stream {
    /// The stream of `seed` for `purpose`.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(purpose.as_bytes());
        Self(Arc::new(Mutex::new(ChaCha8Rng::from_seed(hash.finalize().into()))))
    }

    /// A number from 0 up to and without `end`, which is not 0.
    pub fn below(&self, end: u64) -> u64 {
        self.next_u64() % end
    }

    /// Whether an event of this chance, in thousandths, happens.
    pub fn chance(&self, thousandths: u64) -> bool {
        self.below(1000) < thousandths
    }
}

impl RandomSource for Stream {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}
