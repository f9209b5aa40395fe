// SPDX-License-Identifier: Apache-2.0
//! The options of a handler: as a file, and as containerd passes them.
#![no_main]

use prost::Message;

#[path = "../../../shim/src/options.rs"]
#[allow(dead_code, reason = "the shim needs more of it")]
mod options;

/// Where the options are, in containerd's message: a fuzzer's file is not to be read.
#[derive(Clone, PartialEq, Message)]
struct Elsewhere {
    #[prost(string, tag = "2")]
    path: String,
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        magnetar_vmm::fuzz::options(text);
        let _none_of_ours = options::kind_of_sandboxer(text);
        let _none = options::kind_of_runtime(text);
    }
    if Elsewhere::decode(bytes).is_ok_and(|elsewhere| elsewhere.path.is_empty()) {
        let _refused = options::decode("types.containerd.io/runtimeoptions.v1.Options", bytes);
    }
});
