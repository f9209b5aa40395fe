// SPDX-License-Identifier: Apache-2.0
//! The agent in the guest answers calls of containerd's Task API with whatever it likes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| magnetar_vmm::fuzz::tasks(bytes));
