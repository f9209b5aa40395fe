// SPDX-License-Identifier: Apache-2.0
//! Finds out, on the host and before the container is made, whether its program is a Wasm module.
//!
//! The container's files are found by its specification: its root, and the bind mounts that will be
//! in it. Image and pod may be hostile, so paths are opened beneath their root (openat2), and no
//! link leads out of it. A link from one mount into another cannot be followed here. Such a module
//! is taken for a native program, which is then not found.

use crate::artifact::{self, Which};
use crate::cache::Found;
use crate::nn::named::Named;
use magnetar_core::error::{Code, Context, Error, Result};
use magnetar_core::runtime::libcontainer::{self, Images};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The largest module, in bytes: an engine needs several times as much memory to compile it.
const LARGEST: u64 = 512 << 20;

/// The first four bytes of a module, and of a component (the WebAssembly specification, binary
/// format of modules).
const MAGIC: &[u8; 4] = b"\0asm";

/// The operating system in the header of Wasmtime's object files (the eighth byte, `EI_OSABI`). No
/// other system uses it.
const OS_WASMTIME: u8 = 200;

/// A module that was found.
#[derive(Debug)]
pub struct Module {
    file: File,
    name: String,
    function: Option<String>,
    format: Format,
    cached: Mutex<Option<Found>>,
    models: Mutex<Option<Models>>,
}

/// The language models that the module's container names.
#[derive(Debug)]
pub struct Models {
    /// The channel to the pod's process, which runs their engines.
    pub channel: OwnedFd,
    /// Their names, in the order in which the pod's process knows them.
    pub named: Vec<Named>,
}

/// A module's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The binary format, of a core module or of a component.
    Binary,
    /// The text format.
    Text,
    /// Code that Wasmtime compiled earlier.
    Precompiled,
    /// Code that WasmEdge compiled earlier, a shared library.
    Library,
}

impl Format {
    /// Whether it is native code, which nobody compiles, and which may do what a native program of
    /// the container may.
    pub fn is_native(self) -> bool {
        matches!(self, Self::Precompiled | Self::Library)
    }
}

impl Module {
    fn new(file: File, name: &str, function: Option<&str>, format: Format) -> Self {
        Self { file, name: name.into(), function: function.map(Into::into), format, cached: Mutex::default(), models: Mutex::default() }
    }

    /// The module's name in the container's first argument.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The function to call, if the argument names one after a `#`.
    pub fn function(&self) -> Option<&str> {
        self.function.as_deref()
    }

    /// Opens the file again through a read-only mount. The container gets the open file, and must
    /// not be able to write to it, for example if it is in a read-only volume.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn protect(&mut self) -> Result<()> {
        self.file = magnetar_sys::sealed::reopen(&self.file).context(|| format!("cannot mount {} read-only", self.name))?;
        Ok(())
    }

    /// The module's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its open file.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Sets the result of the cache's look-up, for the engine to take.
    pub fn set_cached(&self, found: Found) {
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    /// Takes the result of the cache's look-up, so that nothing stays open that the engine does not
    /// keep.
    pub fn take_cached(&self) -> Option<Found> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Sets the models of its container, for the engine to take.
    pub fn set_models(&self, models: Models) {
        *self.models.lock().unwrap_or_else(PoisonError::into_inner) = Some(models);
    }

    /// Takes the models of its container.
    pub fn take_models(&self) -> Option<Models> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Closes all descriptors of the process but the standard streams and those that this module
    /// needs.
    pub fn close_all_others(&self) {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keep = vec![self.file.as_fd()];
        keep.extend(cached.iter().map(Found::descriptor));
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        keep.extend(models.iter().map(|models| models.channel.as_fd()));
        magnetar_sys::fork::keep_only(&keep);
    }

    /// Reads its bytes from the beginning, at most [`LARGEST`] and one more.
    pub fn reader(&self) -> impl Read {
        FromStart::of(&self.file).take(LARGEST + 1)
    }

    /// Its size in bytes.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn size(&self) -> Result<u64> {
        Ok(self.file.metadata().context(|| format!("cannot read {}", self.name))?.len())
    }

    /// Checks that the module is not too large. `memory` is the module's memory limit in bytes.
    ///
    /// # Errors
    /// `ResourceExhausted` for a module that is larger than `memory` or than 512 MiB, or the
    /// kernel's error.
    pub fn check_size(&self, memory: Option<u64>) -> Result<()> {
        let size = self.size()?;
        if size > LARGEST {
            return Err(Error::new(Code::ResourceExhausted, format!("it is larger than {} MiB", LARGEST >> 20)));
        }
        if let Some(memory) = memory.filter(|memory| size > *memory) {
            let message = format!("out of memory: it has {size} bytes, and the container's memory limit leaves {memory} for it");
            return Err(Error::new(Code::ResourceExhausted, message));
        }
        Ok(())
    }

    /// Reads the whole module. `memory` is the module's memory limit in bytes.
    ///
    /// # Errors
    /// Those of [`check_size`](Self::check_size).
    pub fn read(&self, memory: Option<u64>) -> Result<Vec<u8>> {
        self.check_size(memory)?;
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes).context(|| format!("cannot read {}", self.name))?;
        Ok(bytes)
    }
}

/// Reads a file by offset, because other processes share the file's position.
pub struct FromStart<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> FromStart<'a> {
    /// From its first byte on.
    pub fn of(file: &'a File) -> Self {
        Self { file, offset: 0 }
    }
}

impl Read for FromStart<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let length = self.file.read_at(into, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

/// The program of a container.
#[derive(Debug)]
pub enum Payload {
    /// A module.
    Module(Module),
    /// A file that is not a module: a native program.
    Native,
    /// There is no such file in the container's root and mounts.
    Missing,
}

/// Finds the program of a bundle's container.
///
/// # Errors
/// When the specification lacks required fields.
pub fn find(spec: &Value, bundle: &Path) -> Result<Payload> {
    find_by(spec, |path| open(spec, bundle, path))
}

/// Finds a program in a running container, below its root as its processes see it. `spec` has the
/// process to start.
///
/// # Errors
/// When the specification lacks required fields.
pub fn find_in_container(spec: &Value, root: &OwnedFd) -> Result<Payload> {
    find_by(spec, |path| Ok(regular(beneath(root, path))))
}

fn find_by(spec: &Value, open: impl Fn(&Path) -> Result<Option<File>>) -> Result<Payload> {
    let (name, function) = program(spec)?;
    for path in candidates(name, &spec["process"]) {
        let Some(file) = open(&path)? else { continue };
        return Ok(match format(&file, &path) {
            Some(format) => Payload::Module(Module::new(file, name, function, format)),
            None => Payload::Native,
        });
    }
    Ok(Payload::Missing)
}

/// The module of a container whose image has no files but is a module itself. `memory` is the
/// module's memory limit in bytes.
///
/// # Errors
/// Those of [`artifact::find`].
pub fn find_in_image(spec: &Value, images: &Images, which: Which, memory: Option<u64>) -> Result<Option<Module>> {
    let (name, function) = program(spec)?;
    let found = artifact::find(spec, name, images, which, memory.map_or(LARGEST, |memory| memory.min(LARGEST)))?;
    Ok(found.map(|file| {
        // The layer's type says that it is a module. If it is not, the engine reports what is
        // wrong.
        let format = format(&file, Path::new(name)).unwrap_or(Format::Binary);
        Module::new(file, name, function, format)
    }))
}

/// The name of a process's program, and of the function to call.
///
/// # Errors
/// When the specification names no program.
pub fn program(spec: &Value) -> Result<(&str, Option<&str>)> {
    let Some(argument) = spec["process"]["args"].get(0).and_then(Value::as_str) else {
        return Err(Error::invalid("the specification names no program"));
    };
    Ok(match argument.split_once('#') {
        Some((name, function)) if !function.is_empty() => (name, Some(function)),
        _ => (argument, None),
    })
}

/// The absolute paths at which the program may be.
fn candidates(name: &str, process: &Value) -> Vec<PathBuf> {
    let directory = Path::new(process["cwd"].as_str().unwrap_or("/"));
    let env = process["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let natives = libcontainer::candidates(name, env.iter().filter_map(Value::as_str));
    // An image with nothing but a module names it without a folder.
    natives.iter().map(PathBuf::as_path).chain([Path::new(name)]).map(|candidate| directory.join(candidate)).collect()
}

/// Opens a regular file of the future container; `None` if there is none.
pub fn open(spec: &Value, bundle: &Path, path: &Path) -> Result<Option<File>> {
    let (root, inner) = place(spec, bundle, path);
    let what = || format!("cannot open {}", root.display());
    let root_fd = match rustix::fs::open(&root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error).context(what),
    };
    let opened = if inner.as_os_str().is_empty() { reopen(&root_fd) } else { beneath(&root_fd, &inner) };
    Ok(regular(opened))
}

/// An error is reported when the container itself executes the program.
fn regular(opened: rustix::io::Result<OwnedFd>) -> Option<File> {
    opened.ok().map(File::from).filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))
}

fn beneath(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    // Do not block on a FIFO, and do not acquire a terminal.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens a file that is mounted over another one.
fn reopen(file: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    if FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    rustix::fs::openat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// The source of the mount in which `path` will be, and the rest of the path in it.
fn place(spec: &Value, bundle: &Path, path: &Path) -> (PathBuf, PathBuf) {
    let mounts = spec["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let binds = mounts.iter().filter_map(|mount| {
        let has_bind = mount["options"].as_array().is_some_and(|options| options.iter().any(|o| o == "bind" || o == "rbind"));
        let destination = Path::new(mount["destination"].as_str()?);
        let inner = path.strip_prefix(destination).ok()?;
        (has_bind || mount["type"] == "bind").then_some((destination, mount["source"].as_str()?, inner))
    });
    // Of mounts at the same depth, the last one is on top.
    match binds.max_by_key(|(destination, _, _)| destination.components().count()) {
        Some((_, source, inner)) => (bundle.join(source), inner.into()),
        None => {
            let root = spec["root"]["path"].as_str().unwrap_or("rootfs");
            (bundle.join(root), path.strip_prefix("/").unwrap_or(path).into())
        }
    }
}

/// A file's format, if it is a module. The binary format is recognised by its content, the text
/// format by its name.
fn format(file: &File, path: &Path) -> Option<Format> {
    let mut head = [0; 8];
    let length = file.read_at(&mut head, 0).unwrap_or_default();
    if length >= MAGIC.len() && head.starts_with(MAGIC) {
        return Some(Format::Binary);
    }
    if length == head.len() && head.starts_with(b"\x7fELF") && head.ends_with(&[OS_WASMTIME]) {
        return Some(Format::Precompiled);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("wat") => Some(Format::Text),
        // By its name it should be a module. If it is not, the engine reports what is wrong.
        Some("wasm") => Some(Format::Binary),
        Some("cwasm") => Some(Format::Precompiled),
        // No program to execute is named so.
        Some("so") if head.starts_with(b"\x7fELF") => Some(Format::Library),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn bundle() -> tempfile::TempDir {
        let bundle = tempfile::tempdir().unwrap();
        let root = bundle.path().join("rootfs");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("bin/app"), b"\0asm\x01\0\0\0").unwrap();
        fs::write(root.join("text.wat"), "(module)").unwrap();
        fs::write(root.join("broken.wasm"), "no module").unwrap();
        fs::write(root.join("code"), b"\x7fELF\x02\x01\x01\xc8more").unwrap();
        fs::write(root.join("library.so"), b"\x7fELF\x02\x01\x01\0more").unwrap();
        fs::write(root.join("bin/native"), b"\x7fELF").unwrap();
        symlink("/bin/app", root.join("link")).unwrap();
        symlink(bundle.path().join("outside"), root.join("escape")).unwrap();
        symlink("../../outside", root.join("climb")).unwrap();
        fs::write(bundle.path().join("outside"), b"\0asm\x01\0\0\0").unwrap();
        bundle
    }

    fn spec(program: &str) -> Value {
        json!({"root": {"path": "rootfs"}, "process": {"args": [program], "cwd": "/", "env": ["PATH=/usr/bin:/bin"]}})
    }

    fn module(spec: &Value, bundle: &Path) -> Option<Module> {
        match find(spec, bundle).unwrap() {
            Payload::Module(module) => Some(module),
            Payload::Native | Payload::Missing => None,
        }
    }

    #[test]
    fn modules_and_native_programs_are_told_apart() {
        let bundle = bundle();
        let found = |program: &str| module(&spec(program), bundle.path());
        for (program, format) in [
            ("/bin/app", Format::Binary),
            ("app", Format::Binary),
            ("/link", Format::Binary),
            ("text.wat", Format::Text),
            ("/broken.wasm", Format::Binary),
            ("/code", Format::Precompiled),
            ("/library.so", Format::Library),
        ] {
            assert_eq!(found(program).map(|module| module.format()), Some(format), "{program}");
        }
        for program in ["native", "/bin/native", "nonesuch", "/bin", ""] {
            assert!(found(program).is_none(), "{program}");
        }
        assert!(matches!(find(&spec("native"), bundle.path()), Ok(Payload::Native)));
        assert!(matches!(find(&spec("nonesuch"), bundle.path()), Ok(Payload::Missing)));
        let module = found("/bin/app#add").unwrap();
        assert_eq!((module.name(), module.function()), ("/bin/app", Some("add")));
        assert_eq!(module.read(None).unwrap(), b"\0asm\x01\0\0\0");
        assert_eq!(module.read(Some(7)).unwrap_err().code(), Code::ResourceExhausted);
    }

    #[test]
    fn no_link_leads_out_of_the_root() {
        let bundle = bundle();
        for program in ["/escape", "/climb", "/../outside", "../outside"] {
            assert!(module(&spec(program), bundle.path()).is_none(), "{program}");
        }
    }

    #[test]
    fn modules_are_found_in_bind_mounts() {
        let bundle = bundle();
        let volume = bundle.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("app.wasm"), b"\0asm\x01\0\0\0").unwrap();
        let mut spec = spec("/data/app.wasm");
        assert!(module(&spec, bundle.path()).is_none());
        spec["mounts"] = json!([{"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "ro"]}]);
        assert!(module(&spec, bundle.path()).is_some());
        spec["mounts"] = json!([{"destination": "/data/app.wasm", "type": "bind", "source": volume.join("app.wasm")}]);
        assert!(module(&spec, bundle.path()).is_some());
    }

    #[test]
    fn a_fifo_is_not_waited_for() {
        let bundle = bundle();
        let fifo = bundle.path().join("rootfs/fifo.wasm");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(module(&spec("/fifo.wasm"), bundle.path()).is_none());
    }
}
