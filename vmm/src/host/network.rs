// SPDX-License-Identifier: Apache-2.0
//! The pod's network, from what CNI left in its namespace to a guest.
//!
//! ```text
//!   the pod's network namespace                                the guest
//!   eth0 <──its peer, a bridge, …                              eth0: same hardware address, addresses, MTU,
//!     │ ingress: all that arrives ──> egress of mag0 ──fd──>         routes and neighbours
//!     └ egress  <── all that arrives: ingress of mag0 <──fd──
//! ```
//!
//! CNI's interfaces keep all that they have, because CNI checks it and takes it away again. Nothing that arrives on them
//! gets as far as the host's own stack in the namespace, so it answers nobody, and it has no reason to speak first.
//!
//! Deliberately absent: rules, and tables other than the main one. The guest does not know them.

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

/// The first interface of every network namespace (`LOOPBACK_IFINDEX` of the kernel's include/net/flow.h).
const LOOPBACK: u32 = 1;

/// A namespace whose interfaces are a guest's.
#[derive(Debug)]
pub struct Attached {
    /// What the guest is to be told.
    pub network: Network,
    /// Its interfaces, each with a tap device that is gone when its descriptor is closed.
    pub nics: Vec<Nic>,
}

/// Gives a guest the interfaces of the network namespace that this thread is in. What an earlier attempt has left there
/// goes first. Cancelled or failed, it may leave what [`detach`] removes.
///
/// # Errors
/// `Unimplemented`, with its name, for an interface that no guest can have; and what the kernel says.
pub async fn attach() -> Result<Attached> {
    netlink::with(|handle| async move {
        remove(&handle).await?;
        let state = State::read(&handle).await?;
        let interfaces = state.interfaces()?;
        let nics = match redirect_all(&handle, &interfaces).await {
            Ok(nics) => nics,
            Err(error) => {
                if let Err(error) = remove(&handle).await {
                    warn!(%error, "not all that was made for a guest's network could be removed");
                }
                return Err(error);
            }
        };
        Ok(Attached { network: state.network(interfaces), nics })
    })
    .await
}

/// Takes away what [`attach`] has made in the network namespace that this thread is in, and nothing else. Again, if it was
/// cancelled or failed.
///
/// # Errors
/// What the kernel says.
pub async fn detach() -> Result<()> {
    netlink::with(|handle| async move { remove(&handle).await }).await
}

/// Brings up the loopback of a network namespace that was made by this process. In those of pods, CNI's `loopback` has done so.
///
/// # Errors
/// What the kernel says.
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
