// SPDX-License-Identifier: Apache-2.0
//! Limits the memory of all modules of a container together.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use wasmtime::ResourceLimiter;

/// The memory for all instances of a container.
#[derive(Debug, Clone)]
pub struct Budget {
    /// The limit in bytes; without it, the memory is unlimited.
    limit: Option<usize>,
    used: Arc<AtomicUsize>,
}

/// The memory that one store has taken. It is given back when the store ends.
#[derive(Debug)]
pub struct Limits {
    budget: Budget,
    taken: usize,
}

/// The error of a module that needs more memory than the container allows.
#[derive(Debug)]
pub struct OutOfMemory {
    wanted: usize,
    limit: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(limit: Option<u64>) -> Self {
        Self { limit: limit.and_then(|limit| usize::try_from(limit).ok()), used: Arc::default() }
    }

    /// The limits of one more store.
    pub fn limits(&self) -> Limits {
        Limits { budget: self.clone(), taken: 0 }
    }
}

impl Limits {
    /// Takes bytes from the budget. The error ends the module with a reason, before the kernel
    /// would kill it without one.
    fn take(&mut self, bytes: usize) -> wasmtime::Result<bool> {
        let Some(limit) = self.budget.limit else { return Ok(true) };
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.taken += bytes;
        match before.saturating_add(bytes) {
            wanted if wanted > limit => Err(wasmtime::Error::new(OutOfMemory { wanted, limit })),
            _ => Ok(true),
        }
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, now: usize, wanted: usize, most: Option<usize>) -> wasmtime::Result<bool> {
        // The engine checks this only later, and would not give the bytes back.
        if most.is_some_and(|most| wanted > most) {
            return Ok(false);
        }
        self.take(wanted.saturating_sub(now))
    }

    fn table_growing(&mut self, now: usize, wanted: usize, most: Option<usize>) -> wasmtime::Result<bool> {
        if most.is_some_and(|most| wanted > most) {
            return Ok(false);
        }
        self.take(wanted.saturating_sub(now).saturating_mul(size_of::<usize>()))
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, limit } = self;
        write!(f, "out of memory: it wants {wanted} bytes, and the container's memory limit leaves {limit} for it")
    }
}

impl std::error::Error for OutOfMemory {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_share_the_container_s_budget() {
        let budget = Budget::new(Some(100));
        let (mut one, mut other) = (budget.limits(), budget.limits());
        assert!(one.memory_growing(0, 60, None).unwrap());
        assert!(other.memory_growing(0, 40, None).unwrap());
        let refused = other.memory_growing(40, 41, None).unwrap_err();
        assert!(refused.downcast_ref::<OutOfMemory>().is_some(), "{refused}");
        drop((one, other));
        assert!(budget.limits().memory_growing(0, 100, None).unwrap(), "what they had is there again");
        assert!(budget.limits().table_growing(0, 13, None).is_err(), "tables are memory");
    }

    #[test]
    fn growth_beyond_a_memory_s_own_maximum_takes_nothing() {
        let mut limits = Budget::new(Some(100)).limits();
        for _ in 0..3 {
            assert!(!limits.memory_growing(0, 60, Some(50)).unwrap());
            assert!(!limits.table_growing(0, 6, Some(5)).unwrap());
        }
        assert!(limits.memory_growing(0, 100, Some(100)).unwrap());
    }

    #[test]
    fn without_a_limit_all_growth_is_allowed() {
        assert!(Budget::new(None).limits().memory_growing(0, usize::MAX, None).unwrap());
    }
}
