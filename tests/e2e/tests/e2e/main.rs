// SPDX-License-Identifier: Apache-2.0
//! End-to-end tests: pods on the node's real containerd, through the CRI, on the runtime handler
//! that `MAGNETAR_HANDLER` names. See the library beside this for how one test runs.

mod bad_input;
mod bench;
mod codes;
mod disk;
mod engine;
mod events;
mod exec;
mod faults;
mod files;
mod hostile;
mod images;
mod images_table;
mod lifecycle;
mod machines;
mod mounts;
mod namespaces;
mod nerdctl;
mod network;
mod options;
mod ownership;
mod parallel;
mod podless;
mod resources;
mod security;
mod stdio;
mod stop;
mod task_api;
mod templates;
mod tools;
mod vm;
mod vm_storage;
// It knows how system calls are made on this architecture alone.
#[cfg(target_arch = "x86_64")]
mod walls;
mod wasi;
mod wasm;
mod wasm_cache;
