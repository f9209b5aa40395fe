// SPDX-License-Identifier: Apache-2.0
//! A pod's stage: how far its making got, so that the next `serve` knows what the last one left
//! unfinished.
//!
//! ```text
//!   (no file)      Create is under way, or was cut off      after a restart: the caller forgot it, so it is removed
//!   stage.created  Create was answered, or about to be      may still be started, if containerd knows it: `serve::unwanted`
//!   stage.starting Start is under way, or was cut off       after a restart: the caller forgot it, so it is removed
//!   stage.started  Start was answered, or about to be       lives on, if containerd knows it
//!   stage.foreign  made by `start`: containerd owns it      `serve` leaves it alone
//! ```
//!
//! The stage is the name of an empty file in the pod's directory. A change renames it with one
//! system call, so it can never be read half written.

use magnetar_core::error::{Context, Error, Result};
use magnetar_core::record::PodDir;
use std::path::PathBuf;

/// A pod's stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Create has not been answered.
    Creating,
    /// The sandbox exists, and Create was answered or was about to be.
    Created,
    /// Start has not been answered.
    Starting,
    /// The sandbox is ready, and Start was answered or was about to be.
    Started,
    /// The pod is not `serve`'s.
    Foreign,
}

impl Stage {
    /// The stage of a pod.
    ///
    /// # Errors
    /// When the directory cannot be read: a file that cannot be seen may still be there.
    pub fn of(dir: &PodDir) -> Result<Self> {
        for stage in [Self::Started, Self::Starting, Self::Created, Self::Foreign] {
            let file = stage.file(dir).unwrap_or_default();
            if file.try_exists().context(|| format!("cannot tell whether there is {}", file.display()))? {
                return Ok(stage);
            }
        }
        Ok(Self::Creating)
    }

    /// Takes a pod from this stage to the next.
    ///
    /// # Errors
    /// When the pod is not in this stage.
    pub fn advance(self, dir: &PodDir, next: Self) -> Result<()> {
        let what = || format!("cannot change the pod's stage from {self:?} to {next:?}");
        match (self.file(dir), next.file(dir)) {
            (Some(from), Some(to)) => std::fs::rename(from, to).context(what),
            (None, Some(to)) => std::fs::File::create_new(to).map(drop).context(what),
            (_, None) => Err(Error::internal(format!("the pod's stage cannot go back from {self:?} to {next:?}"))),
        }
    }

    fn file(self, dir: &PodDir) -> Option<PathBuf> {
        let name = match self {
            Self::Creating => return None,
            Self::Created => "stage.created",
            Self::Starting => "stage.starting",
            Self::Started => "stage.started",
            Self::Foreign => "stage.foreign",
        };
        Some(dir.path().join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_is_advanced_to_the_next_once() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = PodDir::existing(temporary.path().into());
        let mut stage = Stage::Creating;
        for next in [Stage::Created, Stage::Starting, Stage::Started] {
            assert_eq!(Stage::of(&dir).unwrap(), stage);
            stage.advance(&dir, next).unwrap();
            assert!(stage.advance(&dir, next).is_err(), "twice to {next:?}");
            stage = next;
        }
        assert_eq!(Stage::of(&dir).unwrap(), Stage::Started);
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_foreign_pod_is_recognised() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = PodDir::existing(temporary.path().into());
        Stage::Creating.advance(&dir, Stage::Foreign).unwrap();
        assert_eq!(Stage::of(&dir).unwrap(), Stage::Foreign);
    }
}
