// SPDX-License-Identifier: Apache-2.0
//! QEMU says whatever it likes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| magnetar_vmm::fuzz::qmp(bytes));
