// SPDX-License-Identifier: Apache-2.0
//! The differences between QEMU's kinds of machines: the machine's options, and the names of its
//! devices.
//!
//! A microvm has eight slots for virtio devices, four of which every pod needs. QEMU adds their
//! addresses to the kernel's command line. The machine has no ACPI: with it, the kernel assumes
//! that the legacy interrupt controller and timer do not exist, and does not set them up. But they
//! exist. So the first tick arrives as vector 0, a division by zero. Or no tick arrives, and a
//! kernel that could not measure its time stamp counter, as on a busy host, waits for one forever.

use serde::Deserialize;

/// The handler's table `vm.qemu`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QemuConfig {
    /// The program: a name to find in `PATH`, or an absolute path. The default is
    /// `qemu-system-x86_64`.
    pub program: Option<String>,
    /// The kind of machine.
    pub machine: MachineKind,
}

/// The kinds of machines for pods, by QEMU's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineKind {
    /// A PC with PCI Express and ACPI. Every kernel starts on it.
    #[default]
    Q35,
    /// A machine with only memory-mapped virtio devices, whose addresses are on the kernel's
    /// command line. It starts faster. The kernel must have `VIRTIO_MMIO_CMDLINE_DEVICES`, as ours
    /// has.
    Microvm,
}

impl MachineKind {
    /// The folders with guests for it. Who has installed a kernel of our own wants to use it: it
    /// boots in less than half of the time.
    pub(super) fn guests(self) -> &'static [&'static str] {
        match self {
            Self::Q35 => &["guest-own", "guest"],
            Self::Microvm => &["guest-own"],
        }
    }

    /// QEMU's options for this kind.
    pub(super) fn options(self) -> &'static [&'static str] {
        match self {
            // A pod needs no keyboard, SATA, SMBus or VMware port. Linux would probe each of them.
            Self::Q35 => {
                &["-machine", "q35,memory-backend=ram,i8042=off,sata=off,smbus=off,usb=off,vmport=off,hpet=off,dump-guest-core=off"]
            }
            Self::Microvm => &[
                "-machine",
                // The serial port is added with the console.
                "microvm,memory-backend=ram,acpi=off,isa-serial=off,dump-guest-core=off",
                // The device for shared files needs virtio 1, which must be requested for
                // memory-mapped devices.
                "-global",
                "virtio-mmio.force-legacy=false",
            ],
        }
    }

    /// Kernel parameters that skip probing.
    pub(super) fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::Q35 => &[],
            Self::Microvm => &["acpi=off", "pci=off"],
        }
    }

    /// The start of a `-device` for a kind of virtio device, such as `virtio-net`.
    pub(super) fn device(self, kind: &str) -> String {
        match self {
            Self::Q35 if kind == "virtio-net" => {
                // Pods do not boot from the network, so leave out the ROM for that.
                format!("{kind}-pci,disable-legacy=on,romfile=")
            }
            // vhost devices have no legacy form to disable.
            Self::Q35 if kind.starts_with("vhost-") => format!("{kind}-pci"),
            Self::Q35 => format!("{kind}-pci,disable-legacy=on"),
            Self::Microvm => format!("{kind}-device"),
        }
    }
}
