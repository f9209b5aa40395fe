// SPDX-License-Identifier: Apache-2.0
//! Pods whose process has ended unexpectedly. Nothing of them is left on the node, but who asks for their status is told why, until
//! they are shut down or this process ends.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// How many are remembered. Of more, the oldest are forgotten: a node has a hundred pods or two.
const REMEMBERED: usize = 256;

/// The end of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: String,
    /// Since when there was the pod.
    pub since: SystemTime,
    /// Until when.
    pub at: SystemTime,
}

/// Those that are remembered, by their directories, the oldest first.
#[derive(Debug, Default)]
pub struct Lost(Mutex<VecDeque<(PathBuf, End)>>);

impl Lost {
    /// Remembers one.
    pub fn add(&self, dir: &Path, end: End) {
        let mut ends = self.lock();
        ends.retain(|(of, _)| of != dir);
        if ends.len() == REMEMBERED {
            ends.pop_front();
        }
        ends.push_back((dir.into(), end));
    }

    /// The end of one, if it is remembered.
    pub fn get(&self, dir: &Path) -> Option<End> {
        self.lock().iter().find(|(of, _)| of == dir).map(|(_, end)| end.clone())
    }

    /// Forgets one.
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
    fn so_many_are_remembered_and_the_oldest_go() {
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
