// SPDX-License-Identifier: Apache-2.0
//! A container's specification, on its way into a guest.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| magnetar_vmm::fuzz::specification(bytes));
