// SPDX-License-Identifier: Apache-2.0
//! A cgroup's resource usage, in the two messages that containerd and its CRI plugin understand.
//!
//! containerd/cgroups defines `io.containerd.cgroups.v1.Metrics` and
//! `io.containerd.cgroups.v2.Metrics`. Fields and units are filled as that library does it. If a
//! controller and so its file is missing, its part of the message is left out. The kernel's
//! documentation describes the files: admin-guide/cgroup-v1 and -v2.

mod v1;
mod v2;

use super::Cgroup;
use crate::error::{Error, Result};
use containerd_shim_protos::protobuf::Message;
use std::path::Path;

/// Resource usage, as one of the two messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// The message's version.
    pub version: Version,
    /// The message, encoded.
    pub encoded: Vec<u8>,
}

/// The cgroup versions that have a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `io.containerd.cgroups.v1.Metrics`.
    V1,
    /// `io.containerd.cgroups.v2.Metrics`.
    V2,
}

impl Version {
    /// The message's full name, which containerd decodes it by.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::V1 => "io.containerd.cgroups.v1.Metrics",
            Self::V2 => "io.containerd.cgroups.v2.Metrics",
        }
    }
}

/// The cgroup's current resource usage.
///
/// # Errors
///
/// `NotFound` if the cgroup does not exist.
pub fn metrics(cgroup: &Cgroup) -> Result<Metrics> {
    if !cgroup.exists() {
        return Err(Error::not_found(format!("cgroup {cgroup} does not exist")));
    }
    let (version, encoded) = match cgroup {
        Cgroup::V1 { dirs } => (Version::V1, v1::metrics(dirs).write_to_bytes()),
        Cgroup::V2 { dir } => (Version::V2, v2::metrics(dir).write_to_bytes()),
    };
    let encoded = encoded.map_err(|error| Error::internal(format!("metrics of cgroup {cgroup}: {error}")))?;
    Ok(Metrics { version, encoded })
}

/// A file's content. `None` if it does not exist or the kernel refuses, as for pressure that is
/// switched off.
fn read(dir: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(dir.join(file)).ok()
}

/// A file with a single number in it.
fn read_number(dir: &Path, file: &str) -> Option<u64> {
    number(read(dir, file)?.trim())
}

/// Parses a number. `max` is the largest number. A negative number is 0, because some counters are
/// negative for a moment.
fn number(text: &str) -> Option<u64> {
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) if text == "max" => Some(u64::MAX),
        Err(_) => text.parse::<i64>().ok().map(|_| 0),
    }
}

/// Lines of a key and a number. Lines of another form are skipped.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, number(value.trim())?))
    })
}

/// Parses a device's major and minor number, such as `8:16`.
fn device_numbers(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The sizes of huge pages that the kernel has, as cgroup files spell them: `2MB`, `1GB`.
fn huge_page_sizes() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let mut sizes: Vec<_> = entries.filter_map(|entry| huge_page_size(entry.file_name().to_str()?)).collect();
    sizes.sort_unstable();
    sizes
}

/// The size from the name of a directory in /sys/kernel/mm/hugepages, such as `hugepages-2048kB`.
fn huge_page_size(name: &str) -> Option<String> {
    let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kilobytes {
        0..1024 => format!("{kilobytes}KB"),
        1024..1_048_576 => format!("{}MB", kilobytes >> 10),
        _ => format!("{}GB", kilobytes >> 20),
    })
}

/// Lines of rdma.current and rdma.max: `mlx4_0 hca_handle=2 hca_object=max`. Yields device, handles
/// and objects.
fn rdma(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let device = fields.next()?;
        let (mut handles, mut objects) = (0, 0);
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let value = u32::try_from(number(value)?).unwrap_or(u32::MAX);
            match key {
                "hca_handle" => handles = value,
                "hca_object" => objects = value,
                _ => {}
            }
        }
        Some((device, handles, objects))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::Scratch;
    use containerd_shim_protos::cgroups::metrics::Metrics as V1;
    use containerd_shim_protos::cgroups_v2::metrics::Metrics as V2;

    #[test]
    fn numbers_pairs_and_devices_are_parsed() {
        assert_eq!([number("7"), number("max"), number("-3"), number("x"), number("")], [Some(7), Some(u64::MAX), Some(0), None, None]);
        assert_eq!(pairs("a 1\nbroken\nb max\nc x\n").collect::<Vec<_>>(), [("a", 1), ("b", u64::MAX)]);
        assert_eq!(device_numbers("259:3"), Some((259, 3)));
        assert_eq!(device_numbers("Total"), None);
    }

    #[test]
    fn huge_pages_are_spelled_as_cgroup_files_spell_them() {
        let spelled = ["hugepages-64kB", "hugepages-2048kB", "hugepages-1048576kB", "other"].map(huge_page_size);
        assert_eq!(spelled, [Some("64KB".to_owned()), Some("2MB".to_owned()), Some("1GB".to_owned()), None]);
    }

    #[test]
    fn rdma_lines_are_parsed() {
        let text = "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=max\n";
        assert_eq!(rdma(text).collect::<Vec<_>>(), [("mlx4_0", 2, 2000), ("ocrdma1", 3, u32::MAX)]);
    }

    #[test]
    fn a_cgroup_with_a_process_uses_something() {
        let Some(scratch) = Scratch::make("stats") else { return };
        let mut child = scratch.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 100");
        std::thread::sleep(std::time::Duration::from_millis(200));
        let metrics = metrics(&scratch.0).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (pids, cpu, memory) = match metrics.version {
            Version::V1 => {
                let metrics = V1::parse_from_bytes(&metrics.encoded).unwrap();
                (metrics.pids.current, metrics.cpu.usage.total, metrics.memory.usage.usage)
            }
            Version::V2 => {
                let metrics = V2::parse_from_bytes(&metrics.encoded).unwrap();
                (metrics.pids.current, metrics.cpu.usage_usec * 1000, metrics.memory.usage)
            }
        };
        assert!(pids >= 1 && cpu > 1_000_000 && memory > 4096, "{pids} {cpu} {memory}");
    }

    #[test]
    fn metrics_of_a_missing_cgroup_are_not_found() {
        let error = metrics(&Cgroup::at("/magnetar-test-nowhere").unwrap()).unwrap_err();
        assert_eq!(error.code(), crate::error::Code::NotFound);
    }
}
