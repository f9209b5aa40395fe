// SPDX-License-Identifier: Apache-2.0
//! The kinds of sandbox, as a pod names them, and programs that do the same in each.

use std::{env, path::Path};

/// Busybox, each applet a program of its own.
const BUSYBOX: &str = "localhost/magnetar/busybox:1";
/// The modules of images/oci/wasm, and nothing else.
const MODULES: &str = "localhost/magnetar/wasm:1";

/// Says hello and stays. A signal interrupts a shell only between two of its commands.
const HELLO: &str = "trap 'exit 0' TERM; echo hello from a shell; while :; do sleep 0.1; done";

/// A kind of sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Plain namespaces.
    Runc,
    /// WebAssembly modules, run by Wasmtime.
    Wasmtime,
    /// WebAssembly modules, run by WasmEdge.
    WasmEdge,
    /// Virtual machines by QEMU.
    Qemu,
    /// Virtual machines by Cloud Hypervisor.
    Clh,
}

/// A command line.
pub type Words = &'static [&'static str];

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Runc, Self::Wasmtime, Self::WasmEdge, Self::Qemu, Self::Clh];

    /// The name of its RuntimeClass, and of its handler.
    pub fn class(self) -> &'static str {
        match self {
            Self::Runc => "magnetar-runc",
            Self::Wasmtime => "magnetar-wasmtime",
            Self::WasmEdge => "magnetar-wasmedge",
            Self::Qemu => "magnetar-qemu",
            Self::Clh => "magnetar-clh",
        }
    }

    /// Why there can be no pods of this kind on this node, if so.
    pub fn lacking(self) -> Option<&'static str> {
        let path = env::var_os("PATH").unwrap_or_default();
        let has = |program: &str| env::split_paths(&path).any(|folder| folder.join(program).is_file());
        match self {
            Self::Runc | Self::Wasmtime | Self::WasmEdge | Self::Qemu => None,
            Self::Clh if !has("cloud-hypervisor") => Some("this node has no cloud-hypervisor"),
            // The device may be there without a processor that has virtualisation.
            Self::Clh => (!Path::new("/sys/module/kvm_intel").exists() && !Path::new("/sys/module/kvm_amd").exists())
                .then_some("this node has no KVM"),
        }
    }

    /// The image of its containers.
    pub fn image(self) -> &'static str {
        if self.runs_modules() { MODULES } else { BUSYBOX }
    }

    /// Says [`Kind::greeting`] and stays until it is stopped.
    pub fn hello(self) -> Words {
        if self.runs_modules() { &["/modules/hello.wat"] } else { &["sh", "-c", HELLO] }
    }

    /// What [`Kind::hello`] says.
    pub fn greeting(self) -> &'static str {
        if self.runs_modules() { "hello from WebAssembly\n" } else { "hello from a shell\n" }
    }

    /// Says "called by name" and ends.
    pub fn calls(self) -> Words {
        if self.runs_modules() { &["/modules/library.wat#greet"] } else { &["echo", "called by name"] }
    }

    /// Copies its input to its output.
    pub fn copies(self) -> Words {
        if self.runs_modules() { &["/modules/wasi.wasm", "copy"] } else { &["cat"] }
    }

    /// Ends with code 7.
    pub fn fails(self) -> Words {
        if self.runs_modules() { &["/modules/exit.wat"] } else { &["sh", "-c", "exit 7"] }
    }

    fn runs_modules(self) -> bool {
        matches!(self, Self::Wasmtime | Self::WasmEdge)
    }
}
