// SPDX-License-Identifier: Apache-2.0
//! Remembers pods whose process ended unexpectedly. Nothing of them is left on the node, but Status
//! can answer why they ended. They are remembered until they are shut down, or until this process
//! ends.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// How many pods are remembered; beyond that the oldest are forgotten. A node has one or two
/// hundred pods.
const REMEMBERED: usize = 256;

/// The end of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why the pod ended.
    pub reason: String,
    /// When the pod was made.
    pub since: SystemTime,
    /// When it ended.
    pub at: SystemTime,
}

/// The remembered pods by their directories, oldest first.
#[derive(Debug, Default)]
pub struct Lost(Mutex<VecDeque<(PathBuf, End)>>);

impl Lost {
    /// Remembers a pod.
    pub fn add(&self, dir: &Path, end: End) {
        let mut ends = self.lock();
        ends.retain(|(of, _)| of != dir);
        if ends.len() == REMEMBERED {
            ends.pop_front();
        }
        ends.push_back((dir.into(), end));
    }

    /// The end of a pod, if it is remembered.
    pub fn get(&self, dir: &Path) -> Option<End> {
        self.lock().iter().find(|(of, _)| of == dir).map(|(_, end)| end.clone())
    }

    /// Forgets a pod.
    pub fn remove(&self, dir: &Path) {
        self.lock().retain(|(of, _)| of != dir);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(PathBuf, End)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_limit_the_oldest_pod_is_forgotten() {
        let lost = Lost::default();
        let end = |n: usize| End { reason: n.to_string(), since: SystemTime::UNIX_EPOCH, at: SystemTime::UNIX_EPOCH };
        let dir = |n: usize| PathBuf::from(n.to_string());
        for n in 0..=REMEMBERED {
            lost.add(&dir(n), end(n));
        }
        assert_eq!((lost.get(&dir(0)), lost.get(&dir(1))), (None, Some(end(1))));
        lost.add(&dir(1), end(7));
        assert_eq!(lost.get(&dir(1)), Some(end(7)));
        lost.remove(&dir(1));
        assert_eq!((lost.get(&dir(1)), lost.get(&dir(2))), (None, Some(end(2))));
    }
}
