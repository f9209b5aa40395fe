// SPDX-License-Identifier: Apache-2.0
//! What programs say of themselves: the log of an OCI runtime, JSON objects one after the other,
//! and the console of a guest.
#![no_main]

use magnetar_core::runtime::cli::last_error;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _said = last_error(bytes);
    magnetar_vmm::fuzz::console(bytes);
});
