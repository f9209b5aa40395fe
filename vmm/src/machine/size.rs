// SPDX-License-Identifier: Apache-2.0
//! How large a machine is, and how large its containers need it to be: pure arithmetic.
//!
//! ```text
//! memory      its own part, plus the containers' limits, plus the huge pages
//! processors  the containers' limits, rounded up once
//! ```
//!
//! A machine starts with what the pod says of its limits. Later limits only add to that: the memory
//! and the processors of the start cannot be taken away.

use crate::host::huge_pages;
use magnetar_core::error::{Error, Result};
use magnetar_core::pod_config::{CPU_PERIOD, Resources};
use serde_json::Value;

/// The size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// Its processors.
    pub vcpus: u32,
}

impl Size {
    /// The larger memory and the larger number of processors of two sizes.
    pub fn max(self, other: Self) -> Self {
        Self { memory_mib: self.memory_mib.max(other.memory_mib), vcpus: self.vcpus.max(other.vcpus) }
    }

    /// The smaller memory and the smaller number of processors of two sizes.
    pub fn min(self, other: Self) -> Self {
        Self { memory_mib: self.memory_mib.min(other.memory_mib), vcpus: self.vcpus.min(other.vcpus) }
    }

    /// Whether a machine of this size has at least what `other` has.
    pub fn covers(self, other: Self) -> bool {
        self.max(other) == self
    }
}

/// The limits of one container that decide how large its machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    memory: Option<u64>,
    quota: Option<u64>,
    period: Option<u64>,
}

impl Limits {
    /// These limits after an update by `linux.resources` of the OCI specification. What the update
    /// leaves out stays. A number that is not positive means "no limit".
    pub fn updated_by(self, resources: &Value) -> Self {
        let number = |before: Option<u64>, group: &str, key: &str| match &resources[group][key] {
            Value::Null => before,
            value => value.as_u64().filter(|number| *number > 0),
        };
        Self {
            memory: number(self.memory, "memory", "limit"),
            quota: number(self.quota, "cpu", "quota"),
            period: number(self.period, "cpu", "period"),
        }
    }

    /// The limits of a pod as a whole.
    pub fn of_pod(resources: &Resources) -> Self {
        let positive = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0);
        Self {
            memory: positive(resources.memory_limit),
            quota: positive(resources.cpu_quota),
            period: resources.cpu_period.filter(|period| *period > 0),
        }
    }

    /// Thousandths of a processor, rounded up; `None` without a limit.
    fn millis(self) -> Option<u64> {
        self.quota.map(|quota| quota.saturating_mul(1000).div_ceil(self.period.unwrap_or(CPU_PERIOD)))
    }
}

/// That many processors, rounded up.
fn processors(millis: u64) -> u32 {
    rounded(millis.div_ceil(1000))
}

fn rounded(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// What a machine's size depends on besides its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizing {
    /// The size that it was started with, which is its least.
    pub start: Size,
    /// The size that it may grow to.
    pub most: Size,
    /// The memory in addition to the limits, in MiB.
    pub memory_mib: u32,
    /// The same if a container has no memory limit.
    pub unlimited_memory_mib: u32,
    /// The processors if a container has no limit for them.
    pub vcpus: u32,
    /// The huge pages in addition to all limits.
    pub huge_pages: u32,
}

impl Sizing {
    /// The size that these containers need, in a pod with these limits. The kubelet gives a pod a
    /// limit only where all its containers have one, or where the pod itself has one.
    pub fn needed(&self, pod: Option<Limits>, containers: impl IntoIterator<Item = Limits>) -> Size {
        let pod = pod.unwrap_or_default();
        let whole = pod.memory.map_or(0, |limit| self.with_own(limit, self.memory_mib));
        let of_pod = Size { memory_mib: whole, vcpus: pod.millis().map_or(0, processors) };
        self.of_containers(containers).max(of_pod)
    }

    /// That much memory, in MiB, and what the machine has besides.
    fn with_own(&self, bytes: u64, own_mib: u32) -> u32 {
        rounded(bytes.div_ceil(1 << 20)).saturating_add(own_mib).saturating_add(self.huge_pages.saturating_mul(huge_pages::MIB))
    }

    fn of_containers(&self, containers: impl IntoIterator<Item = Limits>) -> Size {
        let (mut bytes, mut millis) = (0_u64, 0_u64);
        let (mut memory_mib, mut vcpus) = (self.memory_mib, 1);
        for limits in containers {
            match limits.memory {
                Some(limit) => bytes = bytes.saturating_add(limit),
                None => memory_mib = self.unlimited_memory_mib,
            }
            match limits.millis() {
                Some(limit) => millis = millis.saturating_add(limit),
                None => vcpus = self.vcpus,
            }
        }
        Size { memory_mib: self.with_own(bytes, memory_mib), vcpus: processors(millis).max(vcpus) }.max(self.start)
    }

    /// Refuses a size that is larger than `before` and than what the machine may grow to.
    ///
    /// # Errors
    /// `FailedPrecondition`, with both numbers.
    pub fn check(&self, before: Size, after: Size) -> Result<()> {
        let (start, most) = (self.start, self.most);
        let refuse = |needs: String, most: String, is_fixed: bool, key: &str| {
            let how = if is_fixed {
                "it cannot grow while it runs: make the pod anew with other limits".to_string()
            } else {
                format!("it can grow to {most}: lower the limits, or raise {key} in the handler's options for new pods")
            };
            Err(Error::precondition(format!("the pod's virtual machine would need {needs}, and {how}")))
        };
        if after.memory_mib > most.memory_mib.max(before.memory_mib) {
            return refuse(
                format!("{} MiB of memory", after.memory_mib),
                format!("{} MiB", most.memory_mib),
                most.memory_mib == start.memory_mib,
                "max_memory_mib",
            );
        }
        if after.vcpus > most.vcpus.max(before.vcpus) {
            return refuse(format!("{} processors", after.vcpus), most.vcpus.to_string(), most.vcpus == start.vcpus, "max_vcpus");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::error::Code;
    use serde_json::json;

    const SIZING: Sizing = Sizing {
        start: Size { memory_mib: 384, vcpus: 1 },
        most: Size { memory_mib: 4096, vcpus: 4 },
        memory_mib: 128,
        unlimited_memory_mib: 1024,
        vcpus: 2,
        huge_pages: 0,
    };

    fn limits(memory_mib: u64, quota: u64) -> Limits {
        Limits::default().updated_by(&json!({"memory": {"limit": memory_mib << 20}, "cpu": {"quota": quota, "period": 100_000}}))
    }

    #[test]
    fn limits_are_added_and_rounded_up_once() {
        let size = |memory_mib, vcpus| Size { memory_mib, vcpus };
        assert_eq!(SIZING.needed(None, []), SIZING.start);
        assert_eq!(SIZING.needed(None, [limits(64, 10_000)]), SIZING.start, "a machine has at least the size of its start");
        assert_eq!(SIZING.needed(None, [limits(512, 50_000), limits(256, 50_000)]), size(896, 1));
        assert_eq!(SIZING.needed(None, [limits(512, 150_000), limits(512, 50_001)]), size(1152, 3));
        assert_eq!(SIZING.needed(None, [limits(512, 10_000), Limits::default()]), size(1536, 2), "one of them has no limit");
        let with_huge_pages = Sizing { huge_pages: 8, ..SIZING };
        assert_eq!(with_huge_pages.needed(None, [limits(512, 10_000)]), size(656, 1));
        assert_eq!(SIZING.needed(None, [limits(u64::MAX >> 21, u64::MAX)]).memory_mib, u32::MAX);
    }

    #[test]
    fn a_machine_has_room_for_what_its_pod_may_use_as_a_whole() {
        let size = |memory_mib, vcpus| Size { memory_mib, vcpus };
        let of_pod = |memory_limit: i64, quota| {
            let resources = Resources { memory_limit: Some(memory_limit), cpu_quota: Some(quota), ..Resources::default() };
            Some(Limits::of_pod(&resources))
        };
        assert_eq!(SIZING.needed(of_pod(512 << 20, 250_000), []), size(640, 3));
        assert_eq!(SIZING.needed(of_pod(512 << 20, 50_000), [limits(1024, 150_000)]), size(1152, 2), "its containers need more");
        assert_eq!(SIZING.needed(of_pod(1, 1), []), SIZING.start);
        assert_eq!(SIZING.needed(of_pod(-1, -1), []), SIZING.start, "no limit says nothing");
        let with_huge_pages = Sizing { huge_pages: 8, ..SIZING };
        assert_eq!(with_huge_pages.needed(of_pod(512 << 20, 1), []), size(656, 1));
    }

    #[test]
    fn an_update_changes_only_what_it_names() {
        let before = limits(512, 150_000);
        assert_eq!(before.updated_by(&json!({})), before);
        assert_eq!(before.updated_by(&json!({"memory": {"limit": 1 << 30}})), limits(1024, 150_000));
        assert_eq!(before.updated_by(&json!({"memory": {"limit": -1}, "cpu": {"quota": -1}})).millis(), None);
        assert_eq!(before.updated_by(&json!({"memory": {"limit": -1}})).memory, None);
        assert_eq!(before.updated_by(&json!({"cpu": {"quota": 10_000, "period": 20_000}})).millis(), Some(500));
        assert_eq!(Limits::default().updated_by(&json!({"cpu": {"quota": 250_000}})).millis(), Some(2500));
        assert_eq!(before.updated_by(&json!({"cpu": {"period": 0}})).millis(), Some(1500), "the kernel's default");
    }

    #[test]
    fn growth_beyond_the_bound_is_refused_with_both_numbers() {
        let size = |memory_mib, vcpus| Size { memory_mib, vcpus };
        let check = |before, after| SIZING.check(before, after).map_err(|error| (error.code(), error.to_string()));
        assert_eq!(check(SIZING.start, SIZING.most), Ok(()));
        assert_eq!(check(size(8192, 8), size(8192, 8)), Ok(()), "it was so before");
        let (code, message) = check(SIZING.start, size(4097, 1)).unwrap_err();
        assert_eq!(code, Code::FailedPrecondition);
        assert_eq!(
            message,
            "the pod's virtual machine would need 4097 MiB of memory, and it can grow to 4096 MiB: lower the limits, or raise \
             max_memory_mib in the handler's options for new pods"
        );
        let (_, message) = check(SIZING.start, size(384, 5)).unwrap_err();
        assert!(message.contains("5 processors, and it can grow to 4: ") && message.contains("max_vcpus"), "{message}");
        // As with huge pages of the host, where processors can still grow.
        let fixed = Sizing { most: size(384, 4), ..SIZING };
        let message = fixed.check(SIZING.start, size(385, 1)).unwrap_err().to_string();
        assert!(message.ends_with("it cannot grow while it runs: make the pod anew with other limits"), "{message}");
    }
}
