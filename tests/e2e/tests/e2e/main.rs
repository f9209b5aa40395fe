// SPDX-License-Identifier: Apache-2.0
//! End-to-end tests: pods on the node's real containerd, through the CRI, on the runtime handler
//! that `MAGNETAR_HANDLER` names. See the library beside this for how one test runs.

mod bad_input;
mod bench;
mod clh_double;
mod crictl_and_ctr;
mod engine;
mod events;
mod examples;
mod exec;
mod faults;
mod free_memory;
mod hostile_guest;
mod images;
mod images_table;
mod lifecycle;
mod llm;
mod model_files;
mod mounts;
mod namespaces;
mod nerdctl;
mod network;
mod nn;
mod options;
mod ownership;
mod parallel;
mod podless;
mod resize;
mod resources;
mod sandbox_files;
mod security;
mod status_codes;
mod stdio;
mod stop;
mod task_api;
mod templates;
mod unwritable_disk;
mod vm;
mod vm_kinds;
mod vm_storage;
// It knows how system calls are made on this architecture alone.
#[cfg(target_arch = "x86_64")]
mod compromised;
mod wasi;
mod wasm;
mod wasm_cache;
mod wasm_generated;
mod wasm_http;
mod wasm_sockets;
