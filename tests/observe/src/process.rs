// SPDX-License-Identifier: Apache-2.0
//! Processes, their ancestry, and their memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Add,
    path::PathBuf,
};

use procfs::process::{Process as Proc, StatFlags};

use crate::{Error, Result};

/// One process at the moment it was read. Kernel threads are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id in our own PID namespace.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// When it was started, in clock ticks after boot. This distinguishes it from a later process
    /// with the same id.
    pub started: u64,
    /// The kernel's short name.
    pub name: String,
    /// It has ended and waits to be reaped.
    pub zombie: bool,
    /// Its command line; empty for a zombie.
    pub command: Vec<String>,
    /// The program it runs; none for a zombie, or if it ended meanwhile.
    pub program: Option<PathBuf>,
}

/// Private and proportional memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Unique set size: private clean and private dirty pages, which would be free without the
    /// process.
    pub uss: u64,
    /// Proportional set size: shared pages count in equal parts.
    pub pss: u64,
    /// Proportional set size without pages of files: what one more process of the same program
    /// would add, because it would share the program itself. (Private dirty pages would be too
    /// many: the pages of a program that was just installed are dirty as well.)
    pub own: u64,
}

impl Add for Memory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { uss: self.uss + other.uss, pss: self.pss + other.pss, own: self.own + other.own }
    }
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

/// A set of processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processes(Vec<Process>);

impl Processes {
    /// All processes that are visible from here.
    pub fn now() -> Result<Self> {
        let all = procfs::process::all_processes().map_err(Error::reading("/proc"))?;
        // A process that ends while it is read is left out.
        let mut found: Vec<_> = all.filter_map(|process| read(&process.ok()?)).collect();
        found.sort_by_key(|process| process.pid);
        Ok(Self(found))
    }

    /// The processes in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.0.iter()
    }

    /// The number of processes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The processes for which `wanted` is true.
    pub fn only(&self, wanted: impl Fn(&Process) -> bool) -> Self {
        Self(self.0.iter().filter(|&p| wanted(p)).cloned().collect())
    }

    /// The processes that are not in `before`.
    pub fn since(&self, before: &Self) -> Self {
        let old: BTreeSet<_> = before.iter().map(|p| (p.pid, p.started)).collect();
        self.only(|p| !old.contains(&(p.pid, p.started)))
    }

    /// The processes without `roots` and their descendants. Parents are looked up in this set, so
    /// call it on a complete set.
    pub fn without(&self, roots: &[i32]) -> Self {
        let parents: BTreeMap<_, _> = self.iter().map(|p| (p.pid, p.parent)).collect();
        self.only(|p| !descends(p.pid, roots, &parents))
    }

    /// The process with this id.
    pub fn find(&self, pid: i32) -> Option<&Process> {
        self.iter().find(|p| p.pid == pid)
    }

    /// The memory of all processes together. Processes that have ended meanwhile have none.
    pub fn memory(&self) -> Memory {
        self.iter().map(Process::memory).sum()
    }
}

impl Process {
    /// Its memory, nothing if it has ended.
    pub fn memory(&self) -> Memory {
        let maps = Proc::new(self.pid).and_then(|process| process.smaps_rollup()).ok();
        let sum = |keys: &[&str]| {
            maps.iter()
                .flat_map(|rollup| rollup.memory_map_rollup.iter())
                .flat_map(|map| keys.iter().filter_map(|&key| map.extension.map.get(key)))
                .sum()
        };
        Memory { uss: sum(&["Private_Clean", "Private_Dirty"]), pss: sum(&["Pss"]), own: sum(&["Pss_Anon", "Pss_Shmem"]) }
    }
}

/// How many descriptors a process has open.
pub fn open_files(pid: i32) -> Result<usize> {
    Proc::new(pid).and_then(|process| process.fd_count()).map_err(Error::reading("a process's descriptors"))
}

fn read(process: &Proc) -> Option<Process> {
    let stat = process.stat().ok()?;
    if StatFlags::from_bits_truncate(stat.flags).contains(StatFlags::PF_KTHREAD) {
        return None;
    }
    Some(Process {
        pid: stat.pid,
        parent: stat.ppid,
        started: stat.starttime,
        zombie: matches!(stat.state, 'Z' | 'X'),
        name: stat.comm,
        command: process.cmdline().unwrap_or_default(),
        program: process.exe().ok(),
    })
}

fn descends(pid: i32, roots: &[i32], parents: &BTreeMap<i32, i32>) -> bool {
    let mut next = Some(pid);
    while let Some(pid) = next {
        if roots.contains(&pid) {
            return true;
        }
        next = parents.get(&pid).copied();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid, parent, started: 0, name: String::new(), zombie: false, command: vec![], program: None }
    }

    fn pids(processes: &Processes) -> Vec<i32> {
        processes.iter().map(|p| p.pid).collect()
    }

    #[test]
    fn without_leaves_out_roots_and_their_descendants() {
        let all = Processes(vec![process(1, 0), process(2, 1), process(3, 2), process(4, 1)]);
        assert_eq!(pids(&all.without(&[2])), [1, 4]);
        assert_eq!(pids(&all.without(&[])), [1, 2, 3, 4]);
    }

    #[test]
    fn a_new_process_with_a_reused_id_is_new() {
        let before = Processes(vec![process(1, 0), process(2, 1)]);
        let reborn = Process { started: 7, ..process(2, 1) };
        let after = Processes(vec![process(1, 0), reborn]);
        assert_eq!(pids(&after.since(&before)), [2]);
    }

    #[test]
    fn this_process_is_found_with_its_memory() {
        let all = Processes::now().unwrap();
        let me = all.find(std::process::id().cast_signed()).unwrap();
        assert!(me.memory().uss > 0);
        assert!(!me.command.is_empty());
    }
}
