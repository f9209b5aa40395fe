// SPDX-License-Identifier: Apache-2.0
//! llama.cpp's own server, as the engine of one model: how it is run, and what it may do.
//!
//! It reads a model that somebody has put into an image, and prompts that somebody has typed. So it
//! runs as a user of the pod's own, sees no process and no file but its libraries and the model,
//! and has no network: it answers at a Unix socket in a folder of its own.

use super::graphics;
use super::metadata::LoadOptions;
use super::named::part_name;
use magnetar_core::confined::confinement::{Calls, Confinement, Files, Pids};
use magnetar_core::confined::own_devices::{Contents, Node};
use magnetar_core::confined::program::Invocation;
use magnetar_sys::bound::CapabilitySet;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The name of its socket. The server takes a name for a Unix socket's by its end.
pub const SOCKET: &str = "m.sock";

/// What the names of a model's parts begin with in its folder.
const PART: &str = "m";

/// How many prompts are computed at a time, if nobody says so. Several share the context, and all
/// of them fail when it is full; so who wants several says so, and keeps to its part.
const PARALLEL: u16 = 1;

/// How many more requests can be under way at a time. Others wait for their connection.
const MORE_THREADS: u32 = 7;

/// What it reads about the node.
const NODE: [&str; 3] = ["/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system"];

/// What one server is for.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The program's path.
    pub program: &'a Path,
    /// The model's files: one, or all its parts in their order.
    pub model: Vec<BorrowedFd<'a>>,
    /// The folder for its socket, which belongs to `user`.
    pub folder: &'a Path,
    /// The same folder, opened: only root can reach it by its path.
    pub opened: BorrowedFd<'a>,
    /// Its user.
    pub user: u32,
    /// How the model is loaded.
    pub options: &'a LoadOptions,
    /// The number of threads that compute, if the options do not say it.
    pub threads: u16,
    /// Whether the model's file says how the embeddings of a text's tokens become one.
    pub has_pooling: bool,
    /// The graphics processors that it may use.
    pub devices: &'a [Node],
}

/// How to run a server, and what it needs to find in its folder.
#[derive(Debug)]
pub struct Prepared<'a> {
    /// How to run it.
    pub invocation: Invocation<'a>,
    /// Symbolic links in its folder, with what they lead to: it looks for the parts of a model by
    /// their names.
    pub links: Vec<(String, PathBuf)>,
}

impl<'a> Plan<'a> {
    /// How to run it. Nothing is made or started.
    pub fn prepare(&self) -> Prepared<'a> {
        let mut invocation = Invocation::new(self.program);
        let descriptor = |number| PathBuf::from(format!("/proc/self/fd/{number}"));
        let models = self.model.iter().map(|model| descriptor(model.as_raw_fd()));
        let more: &[&str] = if self.devices.is_empty() { &[] } else { &graphics::FILES };
        invocation.confinement = Confinement {
            user: Some(self.user),
            capabilities: CapabilitySet::NONE,
            pids: Pids::ItselfAndHolder,
            files: Some(Files {
                // It asks how many processors there are, which instructions they have, and how much
                // memory.
                read: models.chain(NODE.iter().chain(more).map(PathBuf::from)).collect(),
                own: vec![self.folder.to_owned()],
            }),
            calls: if self.devices.is_empty() { Calls::Server } else { Calls::Driver },
        };
        if !self.devices.is_empty() {
            invocation.devices = Some(Contents { devices: graphics::USUAL, nodes: self.devices.to_vec(), ..Contents::default() });
        }
        let folder = descriptor(invocation.open(self.opened));
        let mut files: Vec<PathBuf> = self.model.iter().map(|model| descriptor(invocation.open(*model))).collect();
        let (model, links) = if let [_] = files[..] {
            (files.remove(0), Vec::new())
        } else {
            let name = |number| part_name(PART, number, files.len());
            (folder.join(name(1)), (1..).map(name).zip(files.iter().cloned()).collect())
        };
        invocation.arguments(["--model".into(), model, "--host".into(), folder.join(SOCKET)]);
        let LoadOptions { ctx_size, batch_size, ubatch_size, threads, n_gpu_layers, main_gpu, parallel, use_mmap, embedding } =
            self.options;
        let parallel = parallel.unwrap_or(PARALLEL);
        let mut option = |name: &str, value: Option<u32>| {
            if let Some(value) = value {
                invocation.arguments([name.to_owned(), value.to_string()]);
            }
        };
        option("--ctx-size", *ctx_size);
        option("--batch-size", *batch_size);
        option("--ubatch-size", *ubatch_size);
        option("--threads", Some(threads.unwrap_or(self.threads).into()));
        option("--n-gpu-layers", *n_gpu_layers);
        option("--main-gpu", main_gpu.map(u32::from));
        option("--parallel", Some(parallel.into()));
        // A thread waits for each prompt, also for one that is not computed yet; more are for what
        // is short.
        option("--threads-http", Some(u32::from(parallel) + MORE_THREADS));
        // Prompts of the past would be kept in the container's memory, by default up to 8 GiB.
        option("--cache-ram", Some(0));
        invocation.arguments([
            // Prompts that are computed at the same time share the context: one alone may use all
            // of it.
            "--kv-unified",
            // It is told what to do, and does not look for what would fit.
            "--fit",
            "off",
            "--offline",
            "--no-ui",
            "--no-slots",
            // Its comments in the stream of tokens would be read for nothing.
            "--sse-ping-interval",
            "-1",
        ]);
        if *use_mmap == Some(false) {
            invocation.arguments(["--load-mode", "none"]);
        }
        if *embedding {
            invocation.arguments(["--embeddings"]);
            // Without pooling there is an embedding for each token, and none for the text.
            if !self.has_pooling {
                invocation.arguments(["--pooling", "mean"]);
            }
        }
        Prepared { invocation, links }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const PROGRAM: &str = "/usr/bin/llama-server";

    /// What a test does with a prepared server, whose model has so many parts; if it has several,
    /// they say how embeddings are pooled.
    fn prepared<T>(parts: usize, options: &LoadOptions, devices: &[Node], then: impl FnOnce(Prepared<'_>, &Path) -> T) -> T {
        let has_pooling = parts > 1;
        let (model, folder) = (tempfile::tempfile().unwrap(), tempfile::tempdir().unwrap());
        let opened = std::fs::File::open(folder.path()).unwrap();
        let plan = Plan {
            program: Path::new(PROGRAM),
            model: vec![model.as_fd(); parts],
            folder: folder.path(),
            opened: opened.as_fd(),
            user: 2_000_000_007,
            options,
            threads: 2,
            devices,
            has_pooling,
        };
        then(plan.prepare(), folder.path())
    }

    #[test]
    fn a_server_is_told_its_model_and_options_and_has_nothing_else() {
        let options = LoadOptions { ctx_size: Some(4096), threads: Some(3), embedding: true, ..LoadOptions::default() };
        prepared(1, &options, &[], |Prepared { invocation, links }, folder| {
            let arguments: Vec<_> = invocation.arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
            assert_eq!(arguments[..4], ["--model", "/proc/self/fd/4", "--host", "/proc/self/fd/3/m.sock"]);
            let value = |name| arguments.iter().position(|argument| *argument == name).map(|at| arguments[at + 1]);
            assert_eq!((value("--ctx-size"), value("--threads"), value("--threads-http")), (Some("4096"), Some("3"), Some("8")));
            assert_eq!((value("--batch-size"), arguments.contains(&"--embeddings")), (None, true));
            assert_eq!(value("--pooling"), Some("mean"));
            let Confinement { user, capabilities, pids, files, calls } = invocation.confinement;
            assert_eq!((user, capabilities, pids, calls), (Some(2_000_000_007), CapabilitySet::NONE, Pids::ItselfAndHolder, Calls::Server));
            assert_eq!((files.unwrap().own, links, invocation.devices), (vec![folder.to_owned()], Vec::new(), None));
        });
    }

    #[test]
    fn the_parts_of_a_model_have_the_names_by_which_they_are_looked_for() {
        let options = LoadOptions { embedding: true, ..LoadOptions::default() };
        prepared(2, &options, &[], |Prepared { invocation, links }, _| {
            assert!(invocation.arguments.iter().all(|argument| argument != "--pooling"), "their own is used");
            assert_eq!(invocation.arguments[..2], ["--model", "/proc/self/fd/3/m-00001-of-00002.gguf"]);
            let link = |name: &str, number| (name.to_owned(), PathBuf::from(format!("/proc/self/fd/{number}")));
            assert_eq!(links, [link("m-00001-of-00002.gguf", 4), link("m-00002-of-00002.gguf", 5)]);
        });
    }

    #[test]
    fn a_server_with_a_graphics_processor_has_a_dev_with_it() {
        let devices = [Node { path: "dri/renderD128".into(), major: 226, minor: 128 }];
        prepared(1, &LoadOptions::default(), &devices, |Prepared { invocation, .. }, _| {
            assert_eq!(invocation.devices.unwrap().nodes, devices);
            assert_eq!(invocation.confinement.calls, Calls::Driver);
            assert!(invocation.confinement.files.unwrap().read.contains(&PathBuf::from("/sys")));
        });
    }
}
