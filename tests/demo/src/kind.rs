// SPDX-License-Identifier: Apache-2.0
//! The kinds of sandbox, and what the demo runs in each.

/// One kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// As it is called.
    pub name: &'static str,
    /// What isolates the pod, in a few words.
    pub what: &'static str,
    /// The runtime handler of the shipped configuration.
    pub handler: &'static str,
    /// The image of the container.
    pub image: &'static str,
    /// Its command: prints one line about where it is, and stays.
    pub command: &'static [&'static str],
    /// A command for exec, and what it must print, where the image has programs.
    pub exec: Option<(&'static [&'static str], &'static str)>,
    /// The language model that its module asks: its file, as the node sees the checkout.
    pub model: Option<&'static str>,
    /// What a first pod leaves on the node, for those after it.
    pub left: Left,
    /// The messages by which a pod is refused where the node lacks what this kind needs. That is no
    /// failure of the demo.
    pub missing: &'static [&'static str],
}

/// What a pod leaves on the node, for those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// The template that others are copies of.
    Template,
    /// The compiled code of its module.
    Code,
}

impl Kind {
    /// Whether this error says that the node lacks what the kind needs.
    pub fn is_missing(&self, error: &anyhow::Error) -> bool {
        let error = format!("{error:#}");
        self.missing.iter().any(|message| error.contains(message))
    }
}

const BUSYBOX: &str = "localhost/magnetar/busybox:1";
const HELLO: &[&str] =
    &["sh", "-c", "trap 'exit 0' TERM; echo \"hello from $(uname -s) $(uname -r), process $$\"; while :; do sleep 0.1; done"];

const QUESTION: &str = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";

/// Those that the demo knows, in the order of the table. It shows those that are configured.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "runc",
        what: "namespaces of the node's own kernel",
        handler: "magnetar-runc",
        image: BUSYBOX,
        command: HELLO,
        exec: Some((&["cat", "/etc/hostname"], "demo")),
        model: None,
        left: Left::Nothing,
        missing: &[],
    },
    Kind {
        name: "wasmtime",
        what: "a WebAssembly module, run by Wasmtime in namespaces",
        handler: "magnetar-wasmtime",
        image: "localhost/magnetar/wasm-tools:1",
        command: &[],
        // The module is beside busybox, so that there is a program to execute.
        exec: Some((&["cat", "/etc/hostname"], "demo")),
        model: None,
        left: Left::Code,
        missing: &[],
    },
    Kind {
        name: "wasmedge",
        what: "a WebAssembly module, run by WasmEdge in namespaces",
        handler: "magnetar-wasmedge",
        image: "localhost/magnetar/wasm-tools:1",
        command: &[],
        // The module is beside busybox, so that there is a program to execute.
        exec: Some((&["cat", "/etc/hostname"], "demo")),
        model: None,
        left: Left::Code,
        missing: &[],
    },
    Kind {
        name: "llm",
        what: "a language model, asked by a WebAssembly module",
        handler: "magnetar-wasmedge",
        image: "localhost/magnetar/wasm:1",
        command: &["/modules/nn.wasm", "stay", "default", QUESTION, "{\"temp\":0,\"n-predict\":64}"],
        exec: None,
        model: Some("/magnetar/images/llm/model/tiny.gguf"),
        left: Left::Code,
        missing: &["llama-server is neither in PATH"],
    },
    Kind {
        name: "qemu",
        what: "a virtual machine with a kernel of its own, by QEMU",
        handler: "magnetar-qemu",
        image: BUSYBOX,
        command: HELLO,
        exec: Some((&["hostname"], "demo")),
        model: None,
        left: Left::Nothing,
        missing: &[],
    },
    Kind {
        name: "template",
        what: "the same, as a copy of a machine that was booted before",
        handler: "magnetar-qemu-template",
        image: BUSYBOX,
        command: HELLO,
        exec: Some((&["hostname"], "demo")),
        model: None,
        left: Left::Template,
        missing: &[],
    },
    Kind {
        name: "clh",
        what: "a virtual machine with a kernel of its own, by Cloud Hypervisor",
        handler: "magnetar-clh",
        image: BUSYBOX,
        command: HELLO,
        exec: Some((&["hostname"], "demo")),
        model: None,
        left: Left::Nothing,
        missing: &["Cloud Hypervisor needs KVM", "cloud-hypervisor is neither in PATH"],
    },
];
