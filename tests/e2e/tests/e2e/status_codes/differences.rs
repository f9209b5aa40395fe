// SPDX-License-Identifier: Apache-2.0
//! Where our answers differ from the stock shim's, and why they stay so.

use magnetar_e2e::Case;

use super::{calls::Call, subjects::Column};

/// The stock shim's answer where it is better not asked.
pub const NOT_ASKED: &str = "not asked";

/// The state is the reason of a refusal. The stock shim has only a sentence for that.
const STATE: &str = "the stock shim has a sentence and no code for what a state excludes";

/// What containers without an OCI runtime cannot do.
const NO_CHECKPOINTS: &str = "neither our own maker of containers nor a virtual machine has checkpoints";

/// Cells that differ, all in the same way and for the same reason.
pub struct Difference {
    pub calls: &'static [Call],
    /// Columns with their full names.
    pub columns: &'static [&'static str],
    pub stock: &'static str,
    pub ours: &'static str,
    on: On,
    pub because: &'static str,
}

/// With which handlers it is one.
#[derive(Clone, Copy)]
enum On {
    All,
    VirtualMachines,
    SharedKernel,
    /// Containers are made by crun or runc.
    OciRuntime,
    NoOciRuntime,
}

impl Difference {
    /// Whether it is one with the handler under test.
    pub fn concerns(&self, case: &Case) -> bool {
        let has_oci_runtime = case.handler().starts_with("magnetar-runc");
        match self.on {
            On::All => true,
            On::VirtualMachines => case.is_vm(),
            On::SharedKernel => !case.is_vm(),
            On::OciRuntime => has_oci_runtime,
            On::NoOciRuntime => !has_oci_runtime,
        }
    }

    const fn new(
        calls: &'static [Call],
        columns: &'static [&'static str],
        stock: &'static str,
        ours: &'static str,
        because: &'static str,
    ) -> Self {
        Self { calls, columns, stock, ours, on: On::All, because }
    }

    const fn on(self, on: On) -> Self {
        Self { on, ..self }
    }

    /// FailedPrecondition where the stock shim has no code.
    const fn state(calls: &'static [Call], columns: &'static [&'static str]) -> Self {
        Self::new(calls, columns, "UNKNOWN", "FAILED_PRECONDITION", STATE)
    }
}

/// The stock shim, asked to start an exec that runs, counts the end of that exec twice, and panics
/// when the container ends.
pub fn breaks_the_stock_shim(call: Call, column: Column) -> bool {
    call == Call::Start && ["exec running", "exec running, container paused"].contains(&column.full_name().as_str())
}

/// All of them.
pub const DIFFERENCES: &[Difference] = &[
    Difference::state(&[Call::Pause], &["container created", "container paused", "container stopped"]),
    Difference::state(&[Call::Resume], &["container created", "container running", "container stopped"]),
    Difference::state(&[Call::Exec], &["container paused", "container stopped"]),
    Difference::state(
        &[Call::Start],
        &[
            "container running",
            "container paused",
            "container stopped",
            "exec ended",
            "exec added, container paused",
            "exec ended, container paused",
        ],
    ),
    Difference::state(&[Call::Delete], &["container running", "container paused", "exec running", "exec running, container paused"]),
    Difference::state(
        &[Call::ResizePty, Call::ResizeTerminal],
        &["exec ended", "exec ended, container paused", "exec ended, container stopped"],
    ),
    Difference::state(&[Call::Checkpoint], &["container created", "container stopped"]).on(On::SharedKernel),
    Difference::new(&[Call::Checkpoint], &["container created", "container stopped"], "UNKNOWN", "UNIMPLEMENTED", NO_CHECKPOINTS)
        .on(On::VirtualMachines),
    Difference::new(&[Call::Checkpoint], &["container running", "container paused"], "UNKNOWN", "UNIMPLEMENTED", NO_CHECKPOINTS)
        .on(On::NoOciRuntime),
    Difference::new(
        &[Call::Checkpoint],
        &["container running", "container paused"],
        "UNKNOWN",
        "INTERNAL",
        "the node has no CRIU: the OCI runtime fails, for which the stock shim has no code",
    )
    .on(On::OciRuntime),
    Difference::new(
        &[Call::Create],
        &["container created", "container running", "container paused", "container stopped"],
        "UNKNOWN",
        "ALREADY_EXISTS",
        "the stock shim has no code for a name in use: it lets the OCI runtime find out",
    ),
    Difference::new(
        &[Call::Kill999],
        &["container created", "container running", "container paused", "exec running", "exec running, container paused"],
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "the stock shim has no code for a signal that does not exist",
    ),
    Difference::new(
        &[Call::Update],
        &["container stopped"],
        "UNKNOWN",
        "NOT_FOUND",
        "containerd takes NotFound, and nothing else, for an end that it has not heard of yet",
    ),
    Difference::new(
        &[Call::CloseIo, Call::CloseTerminal],
        &["exec unknown", "exec deleted"],
        "UNKNOWN",
        "NOT_FOUND",
        "the stock shim answers NotFound to every other call, and loses the code in this one",
    ),
    Difference::new(
        &[Call::State],
        &["exec ended, container paused"],
        "OK PAUSED",
        "OK STOPPED",
        "who asks for an exec that has ended is told so; with the stock shim it would have to wait for Resume",
    ),
    Difference::new(
        &[Call::Start],
        &["exec running", "exec running, container paused"],
        NOT_ASKED,
        "FAILED_PRECONDITION",
        "the stock shim refuses, counts the end of the exec twice, and panics when the container ends",
    ),
];
