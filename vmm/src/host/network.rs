// SPDX-License-Identifier: Apache-2.0
//! Connects a guest to the network that CNI set up in the pod's namespace.
//!
//! ```text
//!   the pod's network namespace                                the guest
//!   eth0 <──its peer, a bridge, …                              eth0: same hardware address, addresses, MTU,
//!     │ ingress: all that arrives ──> egress of mag0 ──fd──>         routes and neighbours
//!     └ egress  <── all that arrives: ingress of mag0 <──fd──
//! ```
//!
//! CNI's interfaces keep their addresses and routes, because CNI checks and removes them later.
//! Frames that arrive on them do not reach the host's own stack in the namespace. So that stack
//! answers nobody, and has no reason to send anything.
//!
//! Deliberately absent: routing rules, and routing tables other than the main one. The guest does
//! not get them.

mod redirect;
mod state;
#[cfg(test)]
mod tests;

use crate::machine::spec::Nic;
use magnetar_core::error::{Context, Result};
use magnetar_core::netlink::{self, all};
use magnetar_vm_agent_api::network::Network;
use redirect::Redirects;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkUnspec};
use state::{Interfaces, State};
use tracing::warn;

/// The first interface of every network namespace (`LOOPBACK_IFINDEX` of the kernel's
/// include/net/flow.h).
const LOOPBACK: u32 = 1;

/// A network namespace whose interfaces belong to a guest.
#[derive(Debug)]
pub struct Attached {
    /// The configuration for the guest.
    pub network: Network,
    /// Its interfaces. Each has a tap device, which disappears when its descriptor is closed.
    pub nics: Vec<Nic>,
}

/// Connects the interfaces of this thread's network namespace to a guest. First removes what an
/// earlier attempt left there. If it fails or is cancelled, call [`detach`].
///
/// # Errors
/// `Unimplemented`, with the interface's name, for an interface that a guest cannot have; errors of
/// the kernel.
pub async fn attach() -> Result<Attached> {
    netlink::with(|handle| async move {
        remove(&handle).await?;
        let state = State::read(&handle).await?;
        let interfaces = state.interfaces()?;
        let nics = match redirect_all(&handle, &interfaces).await {
            Ok(nics) => nics,
            Err(error) => {
                if let Err(error) = remove(&handle).await {
                    warn!(%error, "cannot remove everything that was made for a guest's network");
                }
                return Err(error);
            }
        };
        Ok(Attached { network: state.network(interfaces), nics })
    })
    .await
}

/// Removes what [`attach`] made in this thread's network namespace, and nothing else. If it fails
/// or is cancelled, it can be repeated.
///
/// # Errors
/// Errors of the kernel.
pub async fn detach() -> Result<()> {
    netlink::with(|handle| async move { remove(&handle).await }).await
}

/// Brings up the loopback of a network namespace that this process made. For pods, CNI's `loopback`
/// plugin has done it.
///
/// # Errors
/// Errors of the kernel.
pub async fn raise_loopback() -> Result<()> {
    netlink::with(|handle| async move {
        let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
        handle.link().set(up).execute().await.context(|| "cannot bring up the loopback of a network namespace".into())
    })
    .await
}

async fn redirect_all(handle: &Handle, interfaces: &Interfaces) -> Result<Vec<Nic>> {
    let redirects = Redirects(handle);
    let mut nics = Vec::new();
    for (number, (index, interface)) in interfaces.iter().enumerate() {
        let tap = redirects.to_tap(number, *index, interface).await?;
        nics.push(Nic { tap, mac: interface.mac, mtu: interface.mtu });
    }
    Ok(nics)
}

async fn remove(handle: &Handle) -> Result<()> {
    let redirects = Redirects(handle);
    for link in links(handle).await? {
        redirects.remove(&link).await?;
    }
    Ok(())
}

async fn links(handle: &Handle) -> Result<Vec<LinkMessage>> {
    all(handle.link().get().execute()).await.context(|| "cannot list the pod's network interfaces".into())
}
