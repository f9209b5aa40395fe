// SPDX-License-Identifier: Apache-2.0
//! `io.containerd.cgroups.v2.Metrics`. Times are microseconds, as in the files.

use super::{device_numbers, huge_page_sizes, pairs, rdma, read, read_number};
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat, RdmaEntry, RdmaStat,
};
use std::path::Path;

pub(super) fn metrics(dir: &Path) -> Metrics {
    Metrics {
        pids: pids(dir).into(),
        cpu: cpu(dir).into(),
        memory: memory(dir).into(),
        memory_events: read(dir, "memory.events").map(|text| memory_events(&text)).into(),
        io: io(dir).into(),
        hugetlb: huge_pages(dir),
        rdma: rdma_stat(dir).into(),
        ..Metrics::default()
    }
}

fn pids(dir: &Path) -> Option<PidsStat> {
    let limit = read_number(dir, "pids.max").unwrap_or(u64::MAX);
    Some(PidsStat { current: read_number(dir, "pids.current")?, limit, ..PidsStat::default() })
}

fn cpu(dir: &Path) -> Option<CPUStat> {
    let mut stat = cpu_stat(&read(dir, "cpu.stat")?);
    stat.psi = pressure(dir, "cpu.pressure").into();
    Some(stat)
}

/// cpu.stat.
fn cpu_stat(text: &str) -> CPUStat {
    let mut stat = CPUStat::default();
    for (key, value) in pairs(text) {
        match key {
            "usage_usec" => stat.usage_usec = value,
            "user_usec" => stat.user_usec = value,
            "system_usec" => stat.system_usec = value,
            "nr_periods" => stat.nr_periods = value,
            "nr_throttled" => stat.nr_throttled = value,
            "throttled_usec" => stat.throttled_usec = value,
            "nr_bursts" => stat.nr_bursts = value,
            "burst_usec" => stat.burst_usec = value,
            _ => {}
        }
    }
    stat
}

fn memory(dir: &Path) -> Option<MemoryStat> {
    let value = |file: &str| read_number(dir, file);
    let mut stat = memory_stat(&read(dir, "memory.stat")?);
    stat.usage = value("memory.current").unwrap_or(0);
    // The root cgroup has no such file and no limit. containerd subtracts the usage from this
    // value.
    stat.usage_limit = value("memory.max").unwrap_or(u64::MAX);
    stat.max_usage = value("memory.peak").unwrap_or(0);
    stat.swap_usage = value("memory.swap.current").unwrap_or(0);
    stat.swap_limit = value("memory.swap.max").unwrap_or(0);
    stat.swap_max_usage = value("memory.swap.peak").unwrap_or(0);
    stat.psi = pressure(dir, "memory.pressure").into();
    Some(stat)
}

/// memory.stat.
fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, value) in pairs(text) {
        let field = match key {
            "anon" => &mut stat.anon,
            "file" => &mut stat.file,
            "kernel_stack" => &mut stat.kernel_stack,
            "slab" => &mut stat.slab,
            "sock" => &mut stat.sock,
            "shmem" => &mut stat.shmem,
            "file_mapped" => &mut stat.file_mapped,
            "file_dirty" => &mut stat.file_dirty,
            "file_writeback" => &mut stat.file_writeback,
            "anon_thp" => &mut stat.anon_thp,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "slab_reclaimable" => &mut stat.slab_reclaimable,
            "slab_unreclaimable" => &mut stat.slab_unreclaimable,
            "pgfault" => &mut stat.pgfault,
            "pgmajfault" => &mut stat.pgmajfault,
            "workingset_refault" => &mut stat.workingset_refault,
            "workingset_activate" => &mut stat.workingset_activate,
            "workingset_nodereclaim" => &mut stat.workingset_nodereclaim,
            "pgrefill" => &mut stat.pgrefill,
            "pgscan" => &mut stat.pgscan,
            "pgsteal" => &mut stat.pgsteal,
            "pgactivate" => &mut stat.pgactivate,
            "pgdeactivate" => &mut stat.pgdeactivate,
            "pglazyfree" => &mut stat.pglazyfree,
            "pglazyfreed" => &mut stat.pglazyfreed,
            "thp_fault_alloc" => &mut stat.thp_fault_alloc,
            "thp_collapse_alloc" => &mut stat.thp_collapse_alloc,
            _ => continue,
        };
        *field = value;
    }
    stat
}

/// memory.events.
fn memory_events(text: &str) -> MemoryEvents {
    let mut events = MemoryEvents::default();
    for (key, value) in pairs(text) {
        match key {
            "low" => events.low = value,
            "high" => events.high = value,
            "max" => events.max = value,
            "oom" => events.oom = value,
            "oom_kill" => events.oom_kill = value,
            "oom_group_kill" => events.oom_group_kill = value,
            _ => {}
        }
    }
    events
}

fn io(dir: &Path) -> Option<IOStat> {
    let usage = io_entries(&read(dir, "io.stat")?);
    Some(IOStat { usage, psi: pressure(dir, "io.pressure").into(), ..IOStat::default() })
}

/// Lines of `8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0`.
fn io_entries(text: &str) -> Vec<IOEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = device_numbers(fields.next()?)?;
        let mut entry = IOEntry { major, minor, ..IOEntry::default() };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => entry.rbytes = value,
                "wbytes" => entry.wbytes = value,
                "rios" => entry.rios = value,
                "wios" => entry.wios = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

fn pressure(dir: &Path, file: &str) -> Option<PSIStats> {
    Some(pressure_stat(&read(dir, file)?))
}

/// Lines of `some avg10=0.00 avg60=0.12 avg300=0.03 total=157622151`, and the same with `full`.
fn pressure_stat(text: &str) -> PSIStats {
    let data = |kind: &str| {
        let fields = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let mut data = PSIData::default();
        for (key, value) in fields.split_whitespace().filter_map(|field| field.split_once('=')) {
            match key {
                "avg10" => data.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => data.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => data.avg300 = value.parse().unwrap_or(0.0),
                "total" => data.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        Some(data)
    };
    PSIStats { some: data("some").into(), full: data("full").into(), ..PSIStats::default() }
}

fn huge_pages(dir: &Path) -> Vec<HugeTlbStat> {
    let stat = |pagesize: String| {
        let value = |name: &str| read_number(dir, &format!("hugetlb.{pagesize}.{name}"));
        let (current, max) = (value("current")?, value("max")?);
        let events = read(dir, &format!("hugetlb.{pagesize}.events")).unwrap_or_default();
        let failcnt = pairs(&events).find(|(key, _)| *key == "max").map_or(0, |(_, value)| value);
        Some(HugeTlbStat { current, max, pagesize, failcnt, ..HugeTlbStat::default() })
    };
    huge_page_sizes().into_iter().filter_map(stat).collect()
}

fn rdma_stat(dir: &Path) -> Option<RdmaStat> {
    let entries = |text: String| {
        let entry = |(device, hca_handles, hca_objects): (&str, u32, u32)| RdmaEntry {
            device: device.to_owned(),
            hca_handles,
            hca_objects,
            ..RdmaEntry::default()
        };
        rdma(&text).map(entry).collect()
    };
    let current = entries(read(dir, "rdma.current")?);
    Some(RdmaStat { current, limit: entries(read(dir, "rdma.max")?), ..RdmaStat::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cgroup with these files, and nothing else.
    fn cgroup(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[test]
    fn cpu_time_throttling_and_pressure_are_read() {
        let dir = cgroup(&[
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnice_usec 1\nnr_periods 4\nnr_throttled 2\nthrottled_usec 7\nnr_bursts 1\nburst_usec 3\n",
            ),
            ("cpu.pressure", "some avg10=0.50 avg60=1.25 avg300=0.03 total=157622151\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"),
        ]);
        let stat = metrics(dir.path()).cpu.unwrap();
        assert_eq!((stat.usage_usec, stat.user_usec, stat.system_usec), (30, 20, 10));
        assert_eq!((stat.nr_periods, stat.nr_throttled, stat.throttled_usec, stat.nr_bursts, stat.burst_usec), (4, 2, 7, 1, 3));
        assert_eq!((stat.psi.some.avg10, stat.psi.some.avg60, stat.psi.some.total), (0.5, 1.25, 157_622_151));
        assert_eq!(stat.psi.full.total, 9);
    }

    #[test]
    fn memory_and_its_events_are_read() {
        let dir = cgroup(&[
            ("memory.stat", "anon 1\nfile 2\ninactive_file 3\npgfault 4\npgmajfault 5\nthp_collapse_alloc 6\nsec_pagetables 9\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "8192\n"),
            ("memory.swap.current", "0\n"),
            ("memory.swap.max", "1024\n"),
            ("memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n"),
        ]);
        let metrics = metrics(dir.path());
        let stat = metrics.memory.unwrap();
        assert_eq!((stat.anon, stat.file, stat.inactive_file, stat.pgfault, stat.pgmajfault, stat.thp_collapse_alloc), (1, 2, 3, 4, 5, 6));
        assert_eq!((stat.usage, stat.usage_limit, stat.max_usage, stat.swap_limit), (4096, u64::MAX, 8192, 1024));
        assert!(stat.psi.is_none());
        let events = metrics.memory_events.unwrap();
        assert_eq!((events.high, events.max, events.oom, events.oom_kill, events.oom_group_kill), (1, 2, 3, 4, 5));
    }

    #[test]
    fn io_entries_are_parsed() {
        let entries = io_entries("8:16 rbytes=1459200 wbytes=3 rios=192 wios=353 dbytes=0 dios=0\n8:0 \nbroken\n253:1 rbytes=x\n");
        let seen: Vec<_> =
            entries.iter().map(|entry| (entry.major, entry.minor, entry.rbytes, entry.wbytes, entry.rios, entry.wios)).collect();
        assert_eq!(seen, [(8, 16, 1_459_200, 3, 192, 353), (8, 0, 0, 0, 0, 0), (253, 1, 0, 0, 0, 0)]);
    }

    #[test]
    fn without_controllers_the_fields_are_missing() {
        assert_eq!(metrics(cgroup(&[]).path()), Metrics::default());
        let pids = metrics(cgroup(&[("pids.current", "3\n"), ("pids.max", "max\n")]).path()).pids.unwrap();
        assert_eq!((pids.current, pids.limit), (3, u64::MAX));
    }
}
