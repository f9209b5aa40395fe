// SPDX-License-Identifier: Apache-2.0
//! A pod's configuration, as containerd passes it.
#![no_main]

use magnetar_core::pod_config::PodConfig;
use std::path::Component;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(pod) = PodConfig::decode("runtime.v1.PodSandboxConfig", bytes) else { return };
    for file in pod.sysctl_files(true).keys() {
        assert!(file.components().all(|part| matches!(part, Component::Normal(_))), "{file:?} is not below /proc/sys");
    }
    let _refused = pod.refuse_host_sysctls(true);
    // It goes to the pod's process and into its record as JSON.
    let text = serde_json::to_vec(&pod).expect("it is not told");
    assert_eq!(serde_json::from_slice::<PodConfig>(&text).expect("it is not understood"), pod);
});
