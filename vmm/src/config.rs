// SPDX-License-Identifier: Apache-2.0
//! The handler's table `vm`: how to make a machine where the pod does not say.

use crate::host::huge_pages;
use crate::host::{acceleration, vsock};
use crate::hypervisor::cloud_hypervisor::CloudHypervisorConfig;
use crate::hypervisor::qemu::QemuConfig;
use crate::machine::size::{Size, Sizing};
use crate::machine::spec::LEAST_MEMORY;
use magnetar_core::error::{Error, Result};
use magnetar_core::pod_config::{PodConfig, Resources};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The validated table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// The hypervisor.
    pub hypervisor: HypervisorName,
    /// Settings for Cloud Hypervisor only.
    #[serde(rename = "cloud-hypervisor")]
    pub cloud_hypervisor: CloudHypervisorConfig,
    /// Settings for QEMU only.
    pub qemu: QemuConfig,
    /// The guest's kernel. The default is the kernel that is installed beside this program for the
    /// hypervisor.
    pub kernel: Option<PathBuf>,
    /// The initramfs that belongs to the kernel, with the same default.
    pub initramfs: Option<PathBuf>,
    /// Additional parameters for the kernel's command line.
    pub kernel_parameters: String,
    /// The guest's memory in addition to the pod's limits, in MiB, for its kernel, the agent and
    /// cached files.
    pub memory_mib: u32,
    /// The memory of a pod without a limit, in MiB. The host allocates only what the guest touches.
    pub unlimited_memory_mib: u32,
    /// The processors of a pod without a limit.
    pub vcpus: u32,
    /// The most memory that a running machine grows to, in MiB. The default is the host's.
    pub max_memory_mib: Option<u32>,
    /// The most processors of a machine. The default is the host's number.
    pub max_vcpus: Option<u32>,
    /// Whether KVM or emulation executes the guest's code.
    pub acceleration: acceleration::Choice,
    /// Whether the guest's memory consists of the host's huge pages.
    pub huge_pages: bool,
    /// Whether the kernel or a process carries the guest's vsock.
    pub vsock: vsock::Choice,
    /// Whether machines begin as copies of a template.
    pub template: bool,
    /// Whether the guest keeps contents of shared files in its memory.
    pub cache_files: bool,
}

/// The supported hypervisors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HypervisorName {
    /// QEMU.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            hypervisor: HypervisorName::Qemu,
            qemu: QemuConfig::default(),
            cloud_hypervisor: CloudHypervisorConfig::default(),
            kernel: None,
            initramfs: None,
            kernel_parameters: String::new(),
            memory_mib: 128,
            unlimited_memory_mib: 1024,
            vcpus: 1,
            max_memory_mib: None,
            max_vcpus: None,
            acceleration: acceleration::Choice::Auto,
            vsock: vsock::Choice::Auto,
            huge_pages: false,
            template: false,
            cache_files: true,
        }
    }
}

/// What a pod needs in addition to the sum of its containers' limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExtraNeeds {
    /// Whether some of its containers have no memory limit.
    pub has_unlimited_container: bool,
    /// How many huge pages the containers ask for. No memory limit includes them.
    pub huge_pages: u32,
}

/// The most processors of a machine.
const MAX_VCPUS: u64 = 255;

/// The most processors that a machine grows to by default. Each processor that the guest might get
/// costs its kernel memory and, if it is emulated, a fiftieth of its boot.
const MOST_VCPUS: u32 = 4;

/// The most memory that a machine grows to by default, in MiB. An emulated processor has 40 address
/// bits.
const MOST_MEMORY: u32 = 512 << 10;

impl VmConfig {
    /// Reads and checks the table.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key.
    pub fn parse(table: &Map<String, Value>) -> Result<Self> {
        let invalid = |what: String| Error::invalid(format!("the handler's options, table vm: {what}"));
        // They were here before there was more than one hypervisor.
        for key in ["program", "machine"] {
            if table.contains_key(key) {
                return Err(invalid(format!("{key} is a setting of QEMU: move it to the table vm.qemu")));
            }
        }
        let config: Self = serde_json::from_value(Value::Object(table.clone())).map_err(|e| invalid(e.to_string()))?;
        if config.memory_mib < LEAST_MEMORY {
            return Err(invalid(format!(
                "memory_mib = {} is less than {LEAST_MEMORY}, the least that a guest boots with",
                config.memory_mib
            )));
        }
        if config.unlimited_memory_mib < config.memory_mib {
            return Err(invalid("unlimited_memory_mib is less than memory_mib".into()));
        }
        if !(1..=MAX_VCPUS).contains(&u64::from(config.vcpus)) {
            return Err(invalid(format!("vcpus = {} is not between 1 and {MAX_VCPUS}", config.vcpus)));
        }
        if config.template && config.huge_pages {
            return Err(invalid("template and huge_pages cannot both be true: a template's memory is copied page by page".into()));
        }
        if let Some(most) = config.max_vcpus
            && !(u64::from(config.vcpus)..=MAX_VCPUS).contains(&u64::from(most))
        {
            return Err(invalid(format!("max_vcpus = {most} is not between vcpus = {} and {MAX_VCPUS}", config.vcpus)));
        }
        if config.max_memory_mib.is_some_and(|most| most < config.unlimited_memory_mib) {
            return Err(invalid("max_memory_mib is less than unlimited_memory_mib".into()));
        }
        for (key, path) in [("kernel", &config.kernel), ("initramfs", &config.initramfs)] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err(invalid(format!("{key} must be an absolute path")));
            }
        }
        Ok(config)
    }

    /// The paths of the guest's kernel and initramfs. By default they are in the first of the
    /// folders `guests` of `share/magnetar` that has both, else in the last one; under the same
    /// prefix as the `libexec/magnetar` that has this program. If only one is configured, the other
    /// is in the last one: an initramfs fits one kernel.
    pub fn guest_files(&self, guests: &[&str], program: &Path) -> [PathBuf; 2] {
        let share = program.ancestors().nth(3).unwrap_or(Path::new("/")).join("share/magnetar");
        let files = |guest: &&str| ["vmlinux", "initramfs"].map(|name| share.join(guest).join(name));
        let is_there = |files: &[PathBuf; 2]| files.iter().all(|file| file.is_file());
        let configured = [self.kernel.clone(), self.initramfs.clone()];
        let preferred = guests.iter().map(files).find(|files| is_there(files) && configured == [None, None]);
        let default = preferred.or_else(|| guests.last().map(files)).unwrap_or_default();
        let [kernel, initramfs] = configured;
        let [default_kernel, default_initramfs] = default;
        [kernel.unwrap_or(default_kernel), initramfs.unwrap_or(default_initramfs)]
    }

    /// The size of a pod's machine: the sum of its containers' limits, as the kubelet passes it,
    /// plus what the machine itself needs, plus `beyond`.
    pub fn size(&self, pod: &PodConfig, beyond: ExtraNeeds, host: Size) -> Size {
        let limits = pod.resources.as_ref();
        let memory = limits.and_then(|limits| limits.memory_limit).and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
        let memory_mib = match memory {
            Some(bytes) => {
                let own = if beyond.has_unlimited_container { self.unlimited_memory_mib } else { self.memory_mib };
                u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX).saturating_add(own)
            }
            None => self.unlimited_memory_mib,
        };
        let memory_mib = memory_mib.saturating_add(beyond.huge_pages.saturating_mul(huge_pages::MIB));
        let memory_mib =
            if self.huge_pages { memory_mib.checked_next_multiple_of(huge_pages::MIB).unwrap_or(u32::MAX) } else { memory_mib };
        let vcpus = limits.and_then(processors).unwrap_or(self.vcpus).clamp(1, self.most_vcpus(host));
        Size { memory_mib, vcpus }
    }

    /// The size that a machine may grow to that starts with `start`. Memory that consists of the
    /// host's huge pages does not grow.
    pub fn most(&self, start: Size, host: Size) -> Size {
        let memory_mib = if self.huge_pages { start.memory_mib } else { self.max_memory_mib.unwrap_or(host.memory_mib.min(MOST_MEMORY)) };
        Size { memory_mib, vcpus: self.most_vcpus(host) }.max(start)
    }

    /// What the size of a machine follows that started with `start` and may grow to `most`.
    pub fn sizing(&self, start: Size, most: Size, huge_pages: u32) -> Sizing {
        let Self { memory_mib, unlimited_memory_mib, vcpus, .. } = *self;
        Sizing { start, most, memory_mib, unlimited_memory_mib, vcpus, huge_pages }
    }

    fn most_vcpus(&self, host: Size) -> u32 {
        self.max_vcpus.unwrap_or(host.vcpus.min(MOST_VCPUS)).max(1)
    }
}

/// The number of processors for a CPU quota, rounded up.
fn processors(limits: &Resources) -> Option<u32> {
    let quota = limits.cpu_quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0)?;
    let period = limits.cpu_period.filter(|period| *period > 0)?;
    u32::try_from(quota.div_ceil(period).min(MAX_VCPUS)).ok()
}

#[cfg(test)]
mod tests;
