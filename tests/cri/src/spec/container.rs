// SPDX-License-Identifier: Apache-2.0
//! A container's configuration.

use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, Device, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount, MountPropagation, SecurityProfile, security_profile::ProfileType,
};

/// A container to be made in a pod. Its namespace modes are those of its pod.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    config: ContainerConfig,
}

impl ContainerSpec {
    /// A container of `image`; its log is `<name>.log` in the pod's folder.
    pub fn new(name: &str, image: &str) -> Self {
        Self {
            config: ContainerConfig {
                metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
                image: Some(ImageSpec { image: image.to_owned(), ..Default::default() }),
                log_path: format!("{name}.log"),
                linux: Some(LinuxContainerConfig {
                    resources: Some(LinuxContainerResources::default()),
                    security_context: Some(LinuxContainerSecurityContext::default()),
                }),
                ..Default::default()
            },
        }
    }

    /// Another name, for a second container of the same kind in a pod.
    pub fn named(self, name: &str) -> Self {
        self.edit(|c| {
            c.metadata.get_or_insert_default().name = name.to_owned();
            c.log_path = format!("{name}.log");
        })
    }

    /// The configuration as it is sent, without the pod's namespace modes.
    pub fn config(&self) -> &ContainerConfig {
        &self.config
    }

    /// Changes anything that has no method of its own here.
    pub fn edit(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// The command that replaces the image's entrypoint.
    pub fn command<S: Into<String>>(self, words: impl IntoIterator<Item = S>) -> Self {
        self.edit(|c| c.command = words.into_iter().map(Into::into).collect())
    }

    /// A line for the image's shell.
    pub fn shell(self, script: &str) -> Self {
        self.command(["sh", "-c", script])
    }

    /// A variable of the environment.
    pub fn env(self, key: &str, value: &str) -> Self {
        self.edit(|c| c.envs.push(KeyValue { key: key.to_owned(), value: value.to_owned() }))
    }

    /// The working directory.
    pub fn working_dir(self, path: &str) -> Self {
        self.edit(|c| c.working_dir = path.to_owned())
    }

    /// A file or folder of the node, writable.
    pub fn mount(self, host: &str, container: &str) -> Self {
        self.mount_with(host, container, false, MountPropagation::PropagationPrivate)
    }

    /// A file or folder of the node, not writable.
    pub fn mount_read_only(self, host: &str, container: &str) -> Self {
        self.mount_with(host, container, true, MountPropagation::PropagationPrivate)
    }

    /// A file or folder of the node with all settings.
    pub fn mount_with(self, host: &str, container: &str, readonly: bool, propagation: MountPropagation) -> Self {
        self.edit(|c| {
            c.mounts.push(Mount {
                container_path: container.to_owned(),
                host_path: host.to_owned(),
                readonly,
                propagation: propagation.into(),
                ..Default::default()
            });
        })
    }

    /// A device of the node.
    pub fn device(self, host: &str, container: &str, permissions: &str) -> Self {
        self.edit(|c| {
            c.devices.push(Device {
                container_path: container.to_owned(),
                host_path: host.to_owned(),
                permissions: permissions.to_owned(),
            });
        })
    }

    /// Keeps stdin open; with `once` it ends with the first client.
    pub fn stdin(self, once: bool) -> Self {
        self.edit(|c| {
            c.stdin = true;
            c.stdin_once = once;
        })
    }

    /// A terminal.
    pub fn tty(self) -> Self {
        self.edit(|c| c.tty = true)
    }

    /// Limits.
    pub fn resources(self, change: impl FnOnce(&mut LinuxContainerResources)) -> Self {
        self.linux(|l| change(l.resources.get_or_insert_default()))
    }

    /// A memory limit in bytes.
    pub fn memory(self, bytes: i64) -> Self {
        self.resources(|r| r.memory_limit_in_bytes = bytes)
    }

    /// The user.
    pub fn user(self, uid: i64) -> Self {
        self.security(|s| s.run_as_user = Some(Int64Value { value: uid }))
    }

    /// The user by name.
    pub fn username(self, name: &str) -> Self {
        self.security(|s| s.run_as_username = name.to_owned())
    }

    /// The group.
    pub fn group(self, gid: i64) -> Self {
        self.security(|s| s.run_as_group = Some(Int64Value { value: gid }))
    }

    /// Groups beside the first.
    pub fn supplemental_groups(self, gids: &[i64]) -> Self {
        self.security(|s| s.supplemental_groups = gids.to_vec())
    }

    /// Capabilities to add and to drop, without `CAP_`.
    pub fn capabilities(self, add: &[&str], drop: &[&str]) -> Self {
        self.security(|s| {
            s.capabilities = Some(Capability {
                add_capabilities: add.iter().map(|&c| c.to_owned()).collect(),
                drop_capabilities: drop.iter().map(|&c| c.to_owned()).collect(),
                add_ambient_capabilities: Vec::new(),
            });
        })
    }

    /// All capabilities, all devices, nothing masked.
    pub fn privileged(self) -> Self {
        self.security(|s| s.privileged = true)
    }

    /// No way to more rights by executing a file.
    pub fn no_new_privs(self) -> Self {
        self.security(|s| s.no_new_privs = true)
    }

    /// A root filesystem that cannot be written.
    pub fn read_only_rootfs(self) -> Self {
        self.security(|s| s.readonly_rootfs = true)
    }

    /// Paths whose content is hidden.
    pub fn masked_paths(self, paths: &[&str]) -> Self {
        self.security(|s| s.masked_paths = paths.iter().map(|&p| p.to_owned()).collect())
    }

    /// Paths that cannot be written.
    pub fn read_only_paths(self, paths: &[&str]) -> Self {
        self.security(|s| s.readonly_paths = paths.iter().map(|&p| p.to_owned()).collect())
    }

    /// containerd's own seccomp profile.
    pub fn seccomp_default(self) -> Self {
        self.seccomp(ProfileType::RuntimeDefault, "")
    }

    /// No seccomp.
    pub fn seccomp_unconfined(self) -> Self {
        self.seccomp(ProfileType::Unconfined, "")
    }

    /// A seccomp profile in a file of the node.
    pub fn seccomp_file(self, path: &str) -> Self {
        self.seccomp(ProfileType::Localhost, path)
    }

    /// Changes settings of the security context that have no method here.
    pub fn security(self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        self.linux(|l| change(l.security_context.get_or_insert_default()))
    }

    fn seccomp(self, kind: ProfileType, file: &str) -> Self {
        self.security(|s| {
            s.seccomp = Some(SecurityProfile { profile_type: kind.into(), localhost_ref: file.to_owned() });
        })
    }

    fn linux(self, change: impl FnOnce(&mut LinuxContainerConfig)) -> Self {
        self.edit(|c| change(c.linux.get_or_insert_default()))
    }
}
