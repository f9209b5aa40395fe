// SPDX-License-Identifier: Apache-2.0
//! `io.containerd.cgroups.v1.Metrics`.

use super::{device_numbers, huge_page_sizes, pairs, rdma, read, read_number};
use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics, PidsStat, RdmaEntry,
    RdmaStat, Throttle,
};
use nix::unistd::{SysconfVar, sysconf};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const NANOSECONDS: u64 = 1_000_000_000;

pub(super) fn metrics(dirs: &BTreeMap<String, PathBuf>) -> Metrics {
    let dir = |controller: &str| dirs.get(controller).map(PathBuf::as_path);
    Metrics {
        pids: dir("pids").and_then(pids).into(),
        cpu: cpu(dir("cpu"), dir("cpuacct")).into(),
        memory: dir("memory").and_then(memory).into(),
        memory_oom_control: dir("memory").and_then(|dir| read(dir, "memory.oom_control")).map(|text| oom_control(&text)).into(),
        blkio: dir("blkio").map(blkio).into(),
        hugetlb: dir("hugetlb").map(huge_pages).unwrap_or_default(),
        rdma: dir("rdma").map(rdma_stat).into(),
        ..Metrics::default()
    }
}

fn pids(dir: &Path) -> Option<PidsStat> {
    // Only in this field, 0 means no limit.
    let limit = read_number(dir, "pids.max").filter(|limit| *limit != u64::MAX).unwrap_or(0);
    Some(PidsStat { current: read_number(dir, "pids.current")?, limit, ..PidsStat::default() })
}

fn cpu(cpu: Option<&Path>, cpuacct: Option<&Path>) -> Option<CPUStat> {
    let usage = cpuacct.and_then(cpu_usage);
    let throttling = cpu.and_then(|dir| read(dir, "cpu.stat")).map(|text| throttle(&text));
    (usage.is_some() || throttling.is_some()).then(|| CPUStat { usage: usage.into(), throttling: throttling.into(), ..CPUStat::default() })
}

fn cpu_usage(dir: &Path) -> Option<CPUUsage> {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    let (user, kernel) = user_and_kernel(&read(dir, "cpuacct.stat").unwrap_or_default(), ticks);
    Some(CPUUsage {
        total: read_number(dir, "cpuacct.usage")?,
        user,
        kernel,
        per_cpu: read(dir, "cpuacct.usage_percpu").unwrap_or_default().split_whitespace().filter_map(super::number).collect(),
        ..CPUUsage::default()
    })
}

/// cpuacct.stat counts ticks, `ticks` of them in a second; the message has nanoseconds.
fn user_and_kernel(text: &str, ticks: u64) -> (u64, u64) {
    let of = |wanted: &str| pairs(text).find(|(key, _)| *key == wanted).map_or(0, |(_, value)| value);
    let nanoseconds = |count: u64| count.saturating_mul(NANOSECONDS / ticks.max(1));
    (nanoseconds(of("user")), nanoseconds(of("system")))
}

/// cpu.stat.
fn throttle(text: &str) -> Throttle {
    let mut stat = Throttle::default();
    for (key, value) in pairs(text) {
        match key {
            "nr_periods" => stat.periods = value,
            "nr_throttled" => stat.throttled_periods = value,
            "throttled_time" => stat.throttled_time = value,
            _ => {}
        }
    }
    stat
}

fn memory(dir: &Path) -> Option<MemoryStat> {
    let mut stat = memory_stat(&read(dir, "memory.stat")?);
    stat.usage = memory_entry(dir, "memory").into();
    stat.swap = memory_entry(dir, "memory.memsw").into();
    stat.kernel = memory_entry(dir, "memory.kmem").into();
    stat.kernel_tcp = memory_entry(dir, "memory.kmem.tcp").into();
    Some(stat)
}

fn memory_entry(dir: &Path, prefix: &str) -> Option<MemoryEntry> {
    let value = |name: &str| read_number(dir, &format!("{prefix}.{name}"));
    Some(MemoryEntry {
        usage: value("usage_in_bytes")?,
        max: value("max_usage_in_bytes").unwrap_or(0),
        failcnt: value("failcnt").unwrap_or(0),
        limit: value("limit_in_bytes").unwrap_or(u64::MAX),
        ..MemoryEntry::default()
    })
}

/// memory.stat. Keys that begin with `total_` include the cgroups below.
fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, value) in pairs(text) {
        let field = match key {
            "cache" => &mut stat.cache,
            "rss" => &mut stat.rss,
            "rss_huge" => &mut stat.rss_huge,
            "mapped_file" => &mut stat.mapped_file,
            "dirty" => &mut stat.dirty,
            "writeback" => &mut stat.writeback,
            "pgpgin" => &mut stat.pg_pg_in,
            "pgpgout" => &mut stat.pg_pg_out,
            "pgfault" => &mut stat.pg_fault,
            "pgmajfault" => &mut stat.pg_maj_fault,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "hierarchical_memory_limit" => &mut stat.hierarchical_memory_limit,
            "hierarchical_memsw_limit" => &mut stat.hierarchical_swap_limit,
            "total_cache" => &mut stat.total_cache,
            "total_rss" => &mut stat.total_rss,
            "total_rss_huge" => &mut stat.total_rss_huge,
            "total_mapped_file" => &mut stat.total_mapped_file,
            "total_dirty" => &mut stat.total_dirty,
            "total_writeback" => &mut stat.total_writeback,
            "total_pgpgin" => &mut stat.total_pg_pg_in,
            "total_pgpgout" => &mut stat.total_pg_pg_out,
            "total_pgfault" => &mut stat.total_pg_fault,
            "total_pgmajfault" => &mut stat.total_pg_maj_fault,
            "total_inactive_anon" => &mut stat.total_inactive_anon,
            "total_active_anon" => &mut stat.total_active_anon,
            "total_inactive_file" => &mut stat.total_inactive_file,
            "total_active_file" => &mut stat.total_active_file,
            "total_unevictable" => &mut stat.total_unevictable,
            _ => continue,
        };
        *field = value;
    }
    stat
}

/// memory.oom_control.
fn oom_control(text: &str) -> MemoryOomControl {
    let mut stat = MemoryOomControl::default();
    for (key, value) in pairs(text) {
        match key {
            "oom_kill_disable" => stat.oom_kill_disable = value,
            "under_oom" => stat.under_oom = value,
            "oom_kill" => stat.oom_kill = value,
            _ => {}
        }
    }
    stat
}

/// The counters of an I/O scheduler that counts by cgroup. Without one, those of throttling, which
/// always count.
fn blkio(dir: &Path) -> BlkIOStat {
    let entries = |name: &str| block_entries(&read(dir, &format!("blkio.{name}")).unwrap_or_default(), device_name);
    let stat = BlkIOStat {
        io_service_bytes_recursive: entries("io_service_bytes_recursive"),
        io_serviced_recursive: entries("io_serviced_recursive"),
        io_queued_recursive: entries("io_queued_recursive"),
        io_service_time_recursive: entries("io_service_time_recursive"),
        io_wait_time_recursive: entries("io_wait_time_recursive"),
        io_merged_recursive: entries("io_merged_recursive"),
        io_time_recursive: entries("time_recursive"),
        sectors_recursive: entries("sectors_recursive"),
        ..BlkIOStat::default()
    };
    match stat == BlkIOStat::default() {
        false => stat,
        true => BlkIOStat {
            io_service_bytes_recursive: entries("throttle.io_service_bytes"),
            io_serviced_recursive: entries("throttle.io_serviced"),
            ..stat
        },
    }
}

/// Lines of `8:0 Read 4096` or `8:0 4096`. A last line `Total 4096` is skipped.
fn block_entries(text: &str, device_name: impl Fn(u64, u64) -> String) -> Vec<BlkIOEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = device_numbers(fields.next()?)?;
        let (op, value) = match (fields.next()?, fields.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        let (device, op) = (device_name(major, minor), op.to_owned());
        Some(BlkIOEntry { device, op, major, minor, value: value.parse().ok()?, ..BlkIOEntry::default() })
    };
    text.lines().filter_map(entry).collect()
}

/// The device's file in /dev; empty if it has none.
fn device_name(major: u64, minor: u64) -> String {
    let device = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
    device.file_name().map(|name| format!("/dev/{}", name.to_string_lossy())).unwrap_or_default()
}

fn huge_pages(dir: &Path) -> Vec<HugetlbStat> {
    let stat = |pagesize: String| {
        let value = |name: &str| read_number(dir, &format!("hugetlb.{pagesize}.{name}"));
        let (usage, max, failcnt) = (value("usage_in_bytes")?, value("max_usage_in_bytes")?, value("failcnt")?);
        Some(HugetlbStat { usage, max, failcnt, pagesize, ..HugetlbStat::default() })
    };
    huge_page_sizes().into_iter().filter_map(stat).collect()
}

fn rdma_stat(dir: &Path) -> RdmaStat {
    let entries = |file: &str| {
        let entry = |(device, hca_handles, hca_objects): (&str, u32, u32)| RdmaEntry {
            device: device.to_owned(),
            hca_handles,
            hca_objects,
            ..RdmaEntry::default()
        };
        rdma(&read(dir, file).unwrap_or_default()).map(entry).collect()
    };
    RdmaStat { current: entries("rdma.current"), limit: entries("rdma.max"), ..RdmaStat::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_nanoseconds() {
        assert_eq!(user_and_kernel("user 250\nsystem 3\n", 100), (2_500_000_000, 30_000_000));
        assert_eq!(user_and_kernel("", 100), (0, 0));
    }

    #[test]
    fn throttling_is_parsed() {
        let stat = throttle("nr_periods 10\nnr_throttled 3\nthrottled_time 123456789\n");
        assert_eq!((stat.periods, stat.throttled_periods, stat.throttled_time), (10, 3, 123_456_789));
    }

    #[test]
    fn memory_is_read_for_the_cgroup_and_in_total() {
        let stat = memory_stat(
            "cache 1\nrss 2\npgpgin 3\nshmem 99\nhierarchical_memory_limit 9223372036854771712\nhierarchical_memsw_limit 5\n\
             total_cache 11\ntotal_rss 12\ntotal_pgmajfault 13\ntotal_inactive_file 14\ntotal_unevictable 15\n",
        );
        assert_eq!((stat.cache, stat.rss, stat.pg_pg_in), (1, 2, 3));
        assert_eq!((stat.hierarchical_memory_limit, stat.hierarchical_swap_limit), (9_223_372_036_854_771_712, 5));
        assert_eq!((stat.total_cache, stat.total_rss, stat.total_pg_maj_fault), (11, 12, 13));
        assert_eq!((stat.total_inactive_file, stat.total_unevictable), (14, 15));
    }

    #[test]
    fn oom_control_is_parsed() {
        let stat = oom_control("oom_kill_disable 0\nunder_oom 1\noom_kill 4\n");
        assert_eq!((stat.oom_kill_disable, stat.under_oom, stat.oom_kill), (0, 1, 4));
    }

    #[test]
    fn block_entries_have_the_devices_names() {
        let entries =
            block_entries("8:0 Read 4096\n8:0 Write 1\n253:1 77\nTotal 4174\n\nx:y Read 1\n", |major, minor| format!("{major}-{minor}"));
        let seen: Vec<_> = entries.iter().map(|entry| (entry.device.as_str(), entry.op.as_str(), entry.value)).collect();
        assert_eq!(seen, [("8-0", "Read", 4096), ("8-0", "Write", 1), ("253-1", "", 77)]);
        assert_eq!((entries[2].major, entries[2].minor), (253, 1));
    }

    #[test]
    fn without_controllers_the_fields_are_missing() {
        assert_eq!(metrics(&BTreeMap::new()), Metrics::default());
    }
}
