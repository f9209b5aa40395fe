// SPDX-License-Identifier: Apache-2.0
//! What containers made by libcontainer can have, as containerd asks for it.

/// The features of containers made this way, as the JSON of an OCI runtime's `features` (the
/// runtime specification, features-linux.md). It has only the features that containerd reads.
pub fn features() -> Vec<u8> {
    let features = serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        // containerd looks for rro, and offers recursive read-only mounts where it finds it.
        "mountOptions": [
            "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "idmap", "noatime", "nodev", "nodiratime",
            "noexec", "norelatime", "nostrictatime", "nosuid", "private", "rbind", "relatime", "remount", "ro", "rprivate", "rro",
            "rshared", "rslave", "runbindable", "rw", "shared", "slave", "strictatime", "suid", "sync", "unbindable",
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": false},
            "seccomp": {"enabled": true},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
        "annotations": {"org.opencontainers.runc.checkpoint.enabled": "false"},
    });
    features.to_string().into_bytes()
}
