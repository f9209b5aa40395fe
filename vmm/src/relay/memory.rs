// SPDX-License-Identifier: Apache-2.0
//! Volumes in memory. An emptyDir with `medium: Memory` is in the guest's memory: that avoids the
//! way through the share, and counts against the pod's own memory. So is an emptyDir with `medium:
//! HugePages`, because the guest cannot use the host's huge pages.

use magnetar_vm_agent_api::Memory;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The kubelet's folder for a pod's emptyDirs.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS: i64 = 0x0102_1994;

/// `HUGETLBFS_MAGIC` of linux/magic.h.
const HUGETLBFS: i64 = 0x9584_58f6;

/// A pod's volumes in memory, by the host's directory of each. Containers that mount the same
/// directory share the volume.
#[derive(Debug, Default)]
pub struct MemoryVolumes(Mutex<BTreeMap<PathBuf, u32>>);

impl MemoryVolumes {
    /// The volumes that a specification mounts, with their directories on the host.
    pub fn used_by(&self, spec: &Value) -> Vec<(PathBuf, Memory)> {
        let mounts = spec.get("mounts").and_then(Value::as_array).into_iter().flatten();
        let sources = mounts.filter_map(|mount| mount["source"].as_str()).map(PathBuf::from);
        sources.filter_map(|source| self.volume(&source).map(|memory| (source, memory))).collect()
    }

    /// The number of the volume for the directory `source`.
    pub fn number(used: &[(PathBuf, Memory)], source: &Path) -> Option<u32> {
        used.iter().find(|(directory, _)| directory == source).map(|(_, memory)| memory.name)
    }

    fn volume(&self, source: &Path) -> Option<Memory> {
        let in_place = source.parent().and_then(Path::file_name).is_some_and(|name| name == EMPTY_DIR);
        let kind = rustix::fs::statfs(source).ok().filter(|_| in_place)?.f_type;
        if !matches!(kind, TMPFS | HUGETLBFS) {
            return None;
        }
        let mode = source.metadata().ok()?.permissions().mode();
        let stat = rustix::fs::statvfs(source).ok()?;
        let size = Some(stat.f_blocks.saturating_mul(stat.f_frsize)).filter(|size| *size > 0);
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = u32::try_from(numbers.len()).ok()?;
        let name = *numbers.entry(source.to_owned()).or_insert(next);
        Some(Memory { name, size, mode, huge: kind == HUGETLBFS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_kubelets_tmpfs_is_a_memory_volume() {
        let disk = tempfile::tempdir_in("/var/tmp").unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let make = |at: &Path| {
            let dir = at.join(EMPTY_DIR).join("cache");
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        let (on_disk, in_memory) = (make(disk.path()), make(memory.path()));
        let spec = json!({"mounts": [{"source": on_disk}, {"source": in_memory}, {"source": memory.path()}, {"source": "proc"}]});
        let volumes = MemoryVolumes::default();
        let used = volumes.used_by(&spec);
        assert_eq!(used.iter().map(|(source, memory)| (source, memory.name)).collect::<Vec<_>>(), [(&in_memory, 0)]);
        assert_eq!(MemoryVolumes::number(&volumes.used_by(&spec), &in_memory), Some(0), "the same the second time");
        assert_eq!(MemoryVolumes::number(&used, &on_disk), None);
    }
}
