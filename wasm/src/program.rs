// SPDX-License-Identifier: Apache-2.0
//! Runs the container's program: a module in an engine, or a native program.

use crate::INTERPRET;
use crate::artifact::Which;
use crate::cache::{self, Cache};
use crate::compiler;
use crate::engine::{End, Engine};
use crate::guest::Guest;
use crate::nn;
use crate::payload::{self, Module, Payload};
use crate::privileges;
use crate::signals;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::runtime::libcontainer::{
    Entry, Images, Native, Prepared, Program, failed, look_for_program, program_runs, run_if_asked, warn,
};
use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, statfs};
use rustix::process::DumpableBehavior;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::marker::PhantomData;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// The kubelet's default path of the file whose text becomes the message in the container's status
/// (`terminationMessagePath`).
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The mount point of the module's own root in the container. It is in the tmpfs at `/dev`, so that
/// the image needs no folder for it.
pub const GUEST_ROOT: &str = "/dev/wasm";

/// The pod's annotation for containers that run their module as soon as they can: `true`, or
/// anything else.
pub const QUICK_START: &str = "io.magnetar.wasm.quick-start";

/// Runs modules with the engine `E`, and native programs as they are.
#[derive(Debug, Clone)]
pub struct WasmOrNative<E> {
    module: Option<Arc<Module>>,
    /// Whether the module is not the container's own program.
    is_exec: bool,
    /// Whether modules run without being compiled.
    interpret: bool,
    engine: PhantomData<E>,
}

/// The `main` of the engine's program of this name, which magnetar-wasm has make one container, or
/// one process in it.
pub fn main<E: Engine>(name: &str) -> ExitCode {
    run_if_asked(WasmOrNative::<E>::of_arguments()).unwrap_or_else(|| {
        let _unheard = writeln!(std::io::stderr(), "{name}: this program is started by magnetar-wasm");
        ExitCode::FAILURE
    })
}

impl<E: Engine> WasmOrNative<E> {
    /// An executor that has not looked at a container yet. Its engine compiles no modules if this
    /// program was started with [`INTERPRET`].
    pub fn of_arguments() -> Self {
        let interpret = std::env::args_os().any(|argument| argument == INTERPRET);
        Self { module: None, is_exec: false, interpret, engine: PhantomData }
    }
}

impl<E: Engine> Program for WasmOrNative<E> {
    fn prepare(&mut self, spec: &mut Value, bundle: &Path, images: Option<&Images>) -> Result<Prepared> {
        let module = match (payload::find(spec, bundle)?, images) {
            (Payload::Module(mut module), _) => {
                module.protect()?;
                module
            }
            (Payload::Missing, Some(images)) => match payload::find_in_image(spec, images, Which::TitledOrOnly, Guest::memory_of(spec))? {
                Some(module) => module,
                None => return Ok(Prepared::Ready),
            },
            (Payload::Missing | Payload::Native, _) => return Ok(Prepared::Ready),
        };
        let prepared = self.take(module, spec, images)?;
        if prepared == Prepared::Ready
            && let Some(module) = &self.module
            && let Some(models) = nn::ask(spec, bundle)?
        {
            module.set_models(models);
        }
        if prepared == Prepared::Ready {
            mount_guest_root(spec, bundle)?;
        }
        Ok(prepared)
    }

    fn prepare_exec(&mut self, entry: &Entry<'_>) -> Result<Prepared> {
        let (spec, own) = entry_spec(entry)?;
        let has_root = spec["mounts"].as_array().is_some_and(|mounts| mounts.iter().any(|mount| mount["destination"] == GUEST_ROOT));
        let root = format!("/proc/{}/root", entry.init);
        let root = rustix::fs::open(&root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(|| "cannot look into the container, which may have ended".into())?;
        let module = match (payload::find_in_container(&spec, &root)?, entry.images) {
            // It was opened through the container's own mount, which is as writable as for all
            // that run there.
            (Payload::Module(module), _) => module,
            (Payload::Missing, Some(images)) if has_root => {
                // Another name is not meant for the image's only module.
                let which = if payload::program(&spec)?.0 == own { Which::TitledOrOnly } else { Which::Titled };
                match payload::find_in_image(&spec, images, which, Guest::memory_of(&spec))? {
                    Some(module) => module,
                    None => return Ok(Prepared::Ready),
                }
            }
            (Payload::Missing | Payload::Native, _) => return Ok(Prepared::Ready),
        };
        if !has_root {
            let message = format!(
                "{} is a Wasm module, and the program of its container is none: modules are executed only in containers of modules",
                module.name()
            );
            return Err(Error::precondition(message));
        }
        self.is_exec = true;
        self.take(module, &spec, entry.images)
    }
}

impl<E: Engine> WasmOrNative<E> {
    /// Loads what a module needs that cannot be reached from within the container.
    fn take(&mut self, module: Module, spec: &Value, images: Option<&Images>) -> Result<Prepared> {
        check_confinement(spec, &module)?;
        if !module.format().is_native() && !self.interpret {
            let prepared = look_in_cache::<E>(&module, &tenant(spec, images), spec);
            if prepared == Prepared::ByOther {
                return Ok(prepared);
            }
        }
        E::load()?;
        self.module = Some(Arc::new(module));
        Ok(Prepared::Ready)
    }
}

/// The container's specification with the process to start, and the name of the container's own
/// program.
fn entry_spec(entry: &Entry<'_>) -> Result<(Value, String)> {
    let path = entry.bundle.join("config.json");
    let text = std::fs::read(&path).context(|| format!("cannot read {}", path.display()))?;
    let unreadable = |error: serde_json::Error| Error::internal(format!("{} is no OCI specification: {error}", path.display()));
    let mut spec: Value = serde_json::from_slice(&text).map_err(unreadable)?;
    let own = payload::program(&spec)?.0.to_owned();
    spec["process"] =
        serde_json::from_str(entry.process).map_err(|error| Error::invalid(format!("the process does not parse: {error}")))?;
    Ok((spec, own))
}

impl<E: Engine> Executor for WasmOrNative<E> {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        if self.module.is_some() {
            return Ok(());
        }
        explain_exec(spec)?;
        Native.validate(spec)
    }

    fn setup_envs(&self, env: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Native.setup_envs(env)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let Some(module) = &self.module else { return Native.exec(spec) };
        // From here on an error ends the module, as it would end a running native program.
        program_runs();
        // A module that breaks out of the engine must not reach the descriptors with which this
        // process made the container.
        module.close_all_others();
        // The making of the container is over, and the module may run for weeks.
        magnetar_sys::memory::trim();
        let end = match privileges::drop_as_execve_would()
            .and_then(|()| check_volumes())
            .and_then(|()| keep_to_itself(module))
            .and_then(|()| signals::end_when_asked())
        {
            Ok(()) => E::run(module, &Guest::new(spec)),
            Err(error) => End::Refused(error.to_string()),
        };
        if let End::Refused(why) | End::Trapped(why) = &end {
            report(&last_words::<E>(module.name(), why), self.is_exec);
        }
        std::process::exit(end.code::<E>().into())
    }
}

/// Checks that no volume contains a `proc` file system, at any depth: the host may have one mounted
/// below the path that the pod names.
fn check_volumes() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context(|| "cannot see what is mounted in the container".into())?;
    proc_in(&mounts).map_or(Ok(()), |place| Err(no_proc(place)))
}

/// The path at which the module would see a `proc` file system, by the text of
/// `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
fn proc_in(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let place = mount.split(' ').nth(4)?.strip_prefix(GUEST_ROOT)?;
        file_system.starts_with("proc ").then_some(place)
    })
}

fn no_proc(place: &str) -> Error {
    Error::invalid(format!(
        "the volume at {place} is or has the kernel's /proc, which a Wasm module cannot have: it could write to its engine's memory"
    ))
}

/// Prevents other processes of the container, of the same user, from tracing this one and from
/// opening its files.
fn keep_to_itself(module: &Module) -> Result<()> {
    let name = Path::new(module.name()).file_name().map(OsStr::as_encoded_bytes).unwrap_or_default();
    // The name is only for display, and the kernel truncates it. Without it, the process would have
    // its maker's name.
    let _unnamed = CString::new(name).map(|name| rustix::thread::set_name(&name));
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context(|| "cannot protect the module's process from others of the container".into())
}

/// Refuses precompiled code of the image if a native program would be confined by a security
/// module: such a rule takes effect at `execve`, and a module runs without one.
fn check_confinement(spec: &Value, module: &Module) -> Result<()> {
    let rule = ["apparmorProfile", "selinuxLabel"]
        .into_iter()
        .find(|key| spec["process"][key].as_str().is_some_and(|rule| !["", "unconfined"].contains(&rule)));
    match rule {
        Some(key) if module.format().is_native() => {
            let message =
                format!("{} is precompiled: such code is not run in a container with {key}, which would not confine it", module.name());
            Err(Error::precondition(message))
        }
        Some(_) | None => Ok(()),
    }
}

/// The containers that share this one's cache: those of the pod's Kubernetes namespace, or, without
/// a pod, of containerd's namespace. containerd sets the annotation. A pod cannot, because the
/// configuration that we ship passes on only a pod's annotations `io.magnetar.wasm.*`.
fn tenant(spec: &Value, images: Option<&Images>) -> String {
    let kubernetes = spec["annotations"]["io.kubernetes.cri.sandbox-namespace"].as_str();
    let containerd = images.map(|images| images.namespace.as_str());
    format!("{}/{}", containerd.unwrap_or_default(), kubernetes.unwrap_or_default())
}

/// Looks for a module's code, and has it compiled where there is none.
fn look_in_cache<E: Engine>(module: &Module, tenant: &str, spec: &Value) -> Prepared {
    let memory = Guest::memory_of(spec);
    let quickly = spec["annotations"][QUICK_START].as_str() == Some("true");
    let look = || {
        let cache = Cache::open(Path::new(cache::ROOT), &E::compatibility()?, tenant)?;
        if !E::COMPILES {
            return cache.find(module.reader());
        }
        let compile = |bytes: &[u8], effort| compiler::compile::<E>(bytes, module.format(), effort, memory);
        cache.look(module.reader(), module.as_fd(), quickly, || module.read(memory), compile).map(Some)
    };
    match look() {
        Ok(Some(found)) => module.set_cached(found),
        // A maker that compiles looks once more, and says what is wrong with the cache.
        Ok(None) | Err(_) if !E::COMPILES => return Prepared::ByOther,
        Ok(None) => {}
        // The module is then run as without a cache.
        Err(error) => warn(format!("no compiled code from the cache: {error}")),
    }
    Prepared::Ready
}

/// Explains why a command cannot be executed in a module's container whose image lacks that
/// program.
fn explain_exec(spec: &Spec) -> Result<(), ExecutorValidationError> {
    let beside_module = spec.mounts().iter().flatten().any(|mount| mount.destination() == Path::new(GUEST_ROOT));
    match look_for_program(spec) {
        Err(error) if beside_module && error.code() == Code::NotFound => {
            let message = format!("{error}: the image of this Wasm module has neither a program nor a module of that name");
            failed(Error::unimplemented(message.clone()));
            Err(ExecutorValidationError::ArgValidationError(message))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes to the container's log why the module ended, and to the container's status if it is the
/// container's own program.
pub fn report(last_words: &str, is_exec: bool) {
    // A container may have closed its standard error, and may have no termination log.
    let _unheard = std::io::stderr().write_all(last_words.as_bytes());
    let _not_written = termination_log().filter(|_| !is_exec).map(|mut file| file.write_all(last_words.as_bytes()));
}

/// The line that says why the module of this name ended.
pub fn last_words<E: Engine>(module: &str, why: &str) -> String {
    format!("{}: {module}: {}\n", E::NAME, why.trim_end())
}

/// The file whose text becomes the message in the container's status, if there is one.
pub fn termination_log() -> Option<File> {
    OpenOptions::new().append(true).open(TERMINATION_LOG).ok()
}

/// Mounts the files that the module may see a second time, at [`GUEST_ROOT`]: the image without its
/// other mounts, and the volumes.
///
/// The module cannot open anything else, above all not `/proc`: by `/proc/self/mem` it could write
/// to the engine's memory. For native programs in the container nothing changes.
///
/// # Errors
/// `InvalidArgument` if `/dev` is a volume, because all containers that share the volume would see
/// the root that is mounted in it; or if a volume is `/proc`, at whatever path.
fn mount_guest_root(spec: &mut Value, bundle: &Path) -> Result<()> {
    let below = |path: &str, top: &str| path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let kernels = |path: &str| ["/proc", "/sys", "/dev"].iter().any(|top| below(path, top));
    let root = bundle.join(spec["root"]["path"].as_str().unwrap_or("rootfs"));
    let read_only = spec["root"]["readonly"] == Value::Bool(true);
    let mut seen = vec![json!({
        "destination": GUEST_ROOT, "type": "bind", "source": root, "options": ["bind", if read_only { "ro" } else { "rw" }],
    })];
    let mounts = spec["mounts"].as_array().cloned().unwrap_or_default();
    for mut mount in mounts.iter().filter(|mount| mount["type"] == "bind").cloned() {
        if mount["destination"] == "/dev" {
            return Err(Error::invalid("a Wasm module cannot run in a container whose /dev is a volume"));
        }
        let Some(destination) = mount["destination"].as_str().filter(|path| !kernels(path)) else { continue };
        if mount["source"].as_str().is_some_and(|source| statfs(source).is_ok_and(|found| found.f_type == PROC_SUPER_MAGIC)) {
            return Err(no_proc(destination));
        }
        mount["destination"] = Value::from(format!("{GUEST_ROOT}{destination}"));
        seen.push(mount);
    }
    spec["mounts"] = mounts.into_iter().chain(seen).collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_a_namespace_of_kubernetes_or_of_containerd() {
        let images = |namespace: &str| Images { address: "/c.sock".into(), namespace: namespace.into() };
        let pod = |namespace: &str| json!({"annotations": {"io.kubernetes.cri.sandbox-namespace": namespace}});
        assert_eq!(tenant(&pod("shop"), Some(&images("k8s.io"))), "k8s.io/shop");
        assert_ne!(tenant(&pod("shop"), Some(&images("k8s.io"))), tenant(&pod("bank"), Some(&images("k8s.io"))));
        assert_eq!(tenant(&json!({}), Some(&images("default"))), "default/");
    }

    #[test]
    fn a_module_sees_only_the_image_and_the_volumes() {
        let mut spec = json!({
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc"}, {"destination": "/data", "type": "bind", "source": "/v", "options": ["rbind", "ro"]},
                {"destination": "/dev/termination-log", "type": "bind", "source": "/t"}, {"destination": "/system", "type": "bind", "source": "/s"},
            ],
        });
        mount_guest_root(&mut spec, Path::new("/bundle")).unwrap();
        let mounts = spec["mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 7);
        assert_eq!(mounts[4], json!({"destination": "/dev/wasm", "type": "bind", "source": "/bundle/rootfs", "options": ["bind", "ro"]}));
        assert_eq!(mounts[5], json!({"destination": "/dev/wasm/data", "type": "bind", "source": "/v", "options": ["rbind", "ro"]}));
        assert_eq!(mounts[6]["destination"], "/dev/wasm/system");
        let mut volume = json!({"mounts": [{"destination": "/dev", "type": "bind", "source": "/dev"}]});
        assert!(mount_guest_root(&mut volume, Path::new("/bundle")).is_err());
    }

    #[test]
    fn a_volume_with_proc_is_refused() {
        for source in ["/proc", "/proc/self", "/proc/sys/kernel"] {
            let mut spec = json!({"mounts": [{"destination": "/host", "type": "bind", "source": source}]});
            let error = mount_guest_root(&mut spec, Path::new("/bundle")).unwrap_err();
            assert!(error.to_string().starts_with("the volume at /host "), "{error}");
        }
        let mounts = "21 1 0:5 / /proc rw - proc proc rw\n22 1 0:6 / /dev/wasm/host rw - ext4 /dev/vda rw\n";
        assert_eq!(proc_in(mounts), None);
        let below = format!("{mounts}23 22 0:5 / /dev/wasm/host/proc rw,nosuid master:3 - proc proc rw\n");
        assert_eq!(proc_in(&below), Some("/host/proc"));
    }
}
