// SPDX-License-Identifier: Apache-2.0
//! The demo: one pod of every kind of sandbox that this node's containerd knows, each through
//! the whole of what people do with a pod, and one table at the end.
//!
//! ```text
//!   Status: which handlers ──► for each kind: run, create, start, log, exec, stats, stop, remove
//!                                └──► table: how fast, how much memory, what it said
//! ```
//!
//! It runs inside a node (`tests/demo/run`) and leaves nothing behind. When a kind fails, the
//! table says why in a sentence, the others are still shown, and the program ends with 1. A kind
//! that this node cannot have (KVM or a hypervisor is missing) has the reason in the table, too,
//! and is no failure.

mod kind;
mod life;
mod table;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use kind::{KINDS, Kind};
use life::Shown;
use magnetar_cri::Node;

const SOCKET: &str = "/run/containerd/containerd.sock";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match demo().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tell(&format!("demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Shows every kind; true if all of them did well.
async fn demo() -> Result<bool> {
    let socket = std::env::var_os("MAGNETAR_CRI_SOCKET").map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    let node = Node::connect(socket, Duration::from_secs(120)).await?;
    let kinds = built(&node).await?;
    let mut shown: Vec<(&Kind, Result<Shown>)> = Vec::new();
    for kind in kinds {
        tell(&format!("{}: {}", kind.name, kind.what));
        let result = life::show(&node, kind).await;
        if let Err(error) = &result {
            tell(&format!("{}: {}: {error:#}", kind.name, if kind.is_missing(error) { "not on this node" } else { "failed" }));
        }
        for id in node.leftovers() {
            node.remove_pod(&id).await.with_context(|| format!("pod {id} of kind {} cannot be removed", kind.name))?;
        }
        shown.push((kind, result));
    }
    let good = shown.iter().all(|(kind, result)| result.as_ref().err().is_none_or(|error| kind.is_missing(error)));
    show(&table::draw(&shown));
    Ok(good)
}

/// The kinds that containerd has a handler for.
async fn built(node: &Node) -> Result<Vec<&'static Kind>> {
    let handlers = node.status().await?.runtime_handlers;
    let known = |kind: &&Kind| handlers.iter().any(|handler| handler.name == kind.handler);
    let kinds: Vec<_> = KINDS.iter().filter(known).collect();
    let names: Vec<_> = KINDS.iter().map(|kind| kind.handler).collect();
    ensure!(
        !kinds.is_empty(),
        "containerd knows none of the handlers {}: is etc/containerd/conf.d/magnetar.toml in place?",
        names.join(", ")
    );
    Ok(kinds)
}

/// What happens, beside the result.
fn tell(line: &str) {
    eprintln!("{line}");
}

fn show(text: &str) {
    print!("{text}");
}
