// SPDX-License-Identifier: Apache-2.0
//! llama.cpp's own server, as the engine of one model: how it is run, and what it may do.
//!
//! It reads a model that somebody has put into an image, and prompts that somebody has typed. So it
//! runs as a user of the pod's own, sees no process and no file but its libraries and the model,
//! and has no network: it answers at a Unix socket in a folder of its own.

use super::metadata::LoadOptions;
use magnetar_core::confined::confinement::{Calls, Confinement, Files, Pids};
use magnetar_core::confined::program::{Invocation, Program};
use magnetar_sys::bound::CapabilitySet;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The program.
pub const LLAMA_SERVER: Program = Program {
    name: "llama-server",
    places: &["/usr/lib/llama.cpp", "/usr/libexec"],
    remedy: "install Debian's package llama.cpp-tools, or llama.cpp",
};

/// The name of its socket. The server takes a name for a Unix socket's by its end.
pub const SOCKET: &str = "m.sock";

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
    /// The model's file.
    pub model: BorrowedFd<'a>,
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
}

impl<'a> Plan<'a> {
    /// How to run it. Nothing is made or started.
    pub fn invocation(&self) -> Invocation<'a> {
        let mut invocation = Invocation::new(self.program);
        let descriptor = |number| PathBuf::from(format!("/proc/self/fd/{number}"));
        invocation.confinement = Confinement {
            user: Some(self.user),
            capabilities: CapabilitySet::NONE,
            pids: Pids::ItselfAndHolder,
            files: Some(Files {
                // It asks how many processors there are, which instructions they have, and how much
                // memory.
                read: [descriptor(self.model.as_raw_fd())].into_iter().chain(NODE.map(PathBuf::from)).collect(),
                own: vec![self.folder.to_owned()],
            }),
            calls: Calls::Server,
        };
        let model = descriptor(invocation.open(self.model));
        let folder = descriptor(invocation.open(self.opened));
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
        invocation
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_server_is_told_its_model_and_options_and_has_nothing_else() {
        let (model, folder) = (tempfile::tempfile().unwrap(), tempfile::tempdir().unwrap());
        let opened = std::fs::File::open(folder.path()).unwrap();
        let options = LoadOptions { ctx_size: Some(4096), threads: Some(3), embedding: true, ..LoadOptions::default() };
        let plan = Plan {
            program: Path::new("/usr/bin/llama-server"),
            model: model.as_fd(),
            folder: folder.path(),
            opened: opened.as_fd(),
            user: 2_000_000_007,
            options: &options,
            threads: 2,
            has_pooling: false,
        };
        let invocation = plan.invocation();
        let arguments: Vec<_> = invocation.arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
        assert_eq!(arguments[..4], ["--model", "/proc/self/fd/3", "--host", "/proc/self/fd/4/m.sock"]);
        let value = |name| arguments.iter().position(|argument| *argument == name).map(|at| arguments[at + 1]);
        assert_eq!((value("--ctx-size"), value("--threads"), value("--threads-http")), (Some("4096"), Some("3"), Some("8")));
        assert_eq!((value("--batch-size"), arguments.contains(&"--embeddings")), (None, true));
        assert_eq!(value("--pooling"), Some("mean"));
        let own = Plan { has_pooling: true, ..plan }.invocation();
        assert!(own.arguments.iter().all(|argument| argument != "--pooling"));
        let Confinement { user, capabilities, pids, files, calls } = invocation.confinement;
        assert_eq!((user, capabilities, pids, calls), (Some(2_000_000_007), CapabilitySet::NONE, Pids::ItselfAndHolder, Calls::Server));
        assert_eq!(files.unwrap().own, [folder.path()]);
    }
}
