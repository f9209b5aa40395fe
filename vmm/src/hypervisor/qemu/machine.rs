// SPDX-License-Identifier: Apache-2.0
//! What differs between QEMU's kinds of machines: the options of the machine itself, and the names of its devices.
//!
//! A microvm has eight places for virtio devices, four of which every pod needs. QEMU tells the guest where they are by words that
//! it adds to the kernel's command line. It is without ACPI: with it, the kernel takes the machine for one without the old interrupt
//! controller and timer, and never sets them up. They are there, and the first tick arrives as vector 0, a division by zero; or
//! there is no tick at all, and a kernel that could not measure its time stamp counter, as on a busy host, waits for one for ever.

use serde::Deserialize;

/// The handler's table `vm.qemu`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QemuConfig {
    /// Its program: a name to look for in `PATH`, or an absolute path; `qemu-system-x86_64` if not given.
    pub program: Option<String>,
    /// The kind of machine.
    pub machine: MachineKind,
}

/// The kinds of machines that QEMU makes for pods, by its names for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineKind {
    /// A PC with PCI Express and ACPI. Every kernel starts on it.
    #[default]
    Q35,
    /// Nothing but virtio devices that are in memory, where the kernel's command line says: quicker to start. The kernel must have
    /// `VIRTIO_MMIO_CMDLINE_DEVICES`, as our own has.
    Microvm,
}

impl MachineKind {
    /// The folder of the guest that is installed for it.
    pub(super) fn guest(self) -> &'static str {
        match self {
            Self::Q35 => "guest",
            Self::Microvm => "guest-own",
        }
    }

    /// The options that make it.
    pub(super) fn words(self) -> &'static [&'static str] {
        match self {
            // A pod has no use for keyboard, disks on SATA, SMBus, VMware's port. Linux would look for each of them.
            Self::Q35 => {
                &["-machine", "q35,memory-backend=ram,i8042=off,sata=off,smbus=off,usb=off,vmport=off,hpet=off,dump-guest-core=off"]
            }
            Self::Microvm => &[
                "-machine",
                // The serial port is one of ours.
                "microvm,memory-backend=ram,acpi=off,isa-serial=off,dump-guest-core=off",
                // Shared files are a device of virtio 1, which these places have to be told to be.
                "-global",
                "virtio-mmio.force-legacy=false",
            ],
        }
    }

    /// What its kernel need not look for.
    pub(super) fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::Q35 => &[],
            Self::Microvm => &["acpi=off", "pci=off"],
        }
    }

    /// One of its virtio devices, `virtio-net` for instance, as the beginning of a `-device`.
    pub(super) fn device(self, kind: &str) -> String {
        match self {
            Self::Q35 if kind == "virtio-net" => {
                // Nobody boots from the network, so the ROM that could is left out.
                format!("{kind}-pci,disable-legacy=on,romfile=")
            }
            // Those of vhost have no other form, and need no such option.
            Self::Q35 if kind.starts_with("vhost-") => format!("{kind}-pci"),
            Self::Q35 => format!("{kind}-pci,disable-legacy=on"),
            Self::Microvm => format!("{kind}-device"),
        }
    }
}
