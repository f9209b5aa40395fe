// SPDX-License-Identifier: Apache-2.0
//! Tap devices, and the rules that pass all frames between a tap and an interface.
//!
//! Our rules are recognised by their priority, which nobody else uses. Rules of others stay, and
//! apply first.

use super::state::{TAP, is_tap, name};
use magnetar_core::error::{Context, Error, Result};
use magnetar_core::netlink::{self, Answer, all};
use magnetar_vm_agent_api::network::Interface;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{Handle, LinkUnspec};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use tracing::debug;

/// The priority of our rules.
const PRIORITY: u16 = 0x6d61;

/// Every protocol: `ETH_P_ALL` of linux/if_ether.h, in network byte order, as the kernel expects.
const ANY_PROTOCOL: u16 = 3_u16.to_be();

/// The rules of a namespace, through a netlink connection.
#[derive(Debug)]
pub struct Redirects<'a>(pub &'a Handle);

impl Redirects<'_> {
    /// Makes the tap with a number, and passes all frames between it and an interface.
    pub async fn to_tap(&self, number: usize, index: u32, interface: &Interface) -> Result<OwnedFd> {
        let name = format!("{TAP}{number}");
        let what = || format!("cannot make the tap device {name} for the pod's interface {}", interface.name);
        let c_name = CString::new(name.as_str()).map_err(|_| Error::internal(what()))?;
        let tap = magnetar_sys::tap::open(&c_name).context(what)?;
        let found = all(self.0.link().get().match_name(&name).execute()).await.context(what)?;
        let tap_index = found.first().map(|link| link.header.index).ok_or_else(|| Error::internal(what()))?;
        self.disable_link_local(tap_index).await;
        let up = LinkUnspec::new_with_index(tap_index).mtu(interface.mtu).up().build();
        self.0.link().set(up).execute().await.context(|| format!("cannot bring up {name} with an MTU of {}", interface.mtu))?;
        let what = || format!("cannot pass frames between {name} and the pod's interface {} (tc: ingress, u32, mirred)", interface.name);
        self.redirect(tap_index, index).await.context(what)?;
        self.redirect(index, tap_index).await.context(what)?;
        Ok(tap)
    }

    /// Removes the rule of an interface, or the interface itself if it is one of our taps.
    pub async fn remove(&self, link: &LinkMessage) -> Result<()> {
        if link.header.flags.contains(LinkFlags::Loopback) {
            return Ok(());
        }
        let (name, index) = (name(link), link.header.index);
        if is_tap(link) {
            return self.0.link().del(index).execute().await.or_else(unless(Errno::NODEV)).context(|| format!("cannot remove {name}"));
        }
        self.remove_rule(index as i32).await.context(|| format!("cannot remove the rule of the pod's interface {name}"))
    }

    /// Without this, the host's stack would send packets to the guest from a link-local address.
    async fn disable_link_local(&self, tap: u32) {
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message = LinkUnspec::new_with_index(tap).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none])).build();
        if let Err(error) = self.0.link().set(message).execute().await {
            debug!(%error, "cannot keep a tap device from getting a link-local address");
        }
    }

    /// Sends everything that arrives on `from` out through `to`.
    async fn redirect(&self, from: u32, to: u32) -> Answer<()> {
        let from = from as i32;
        self.0.qdisc().add(from).ingress().execute().await.or_else(unless(Errno::EXIST))?;
        // This parent works for a qdisc `ingress` and for a `clsact` that somebody else added.
        let rule = self.0.traffic_filter(from).add().ingress().priority(PRIORITY).protocol(ANY_PROTOCOL);
        rule.redirect(to)?.execute().await
    }

    async fn remove_rule(&self, index: i32) -> Answer<()> {
        let mut rule = TcMessage::with_index(index);
        rule.header.parent = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };
        rule.header.info = u32::from(TcHandle { major: PRIORITY, minor: ANY_PROTOCOL });
        match netlink::request(self.0, RouteNetlinkMessage::DelTrafficFilter(rule), 0).await {
            // There is no such rule, no qdisc, or no interface any more.
            Err(error) if matches!(netlink::errno(&error), Some(Errno::NOENT | Errno::INVAL | Errno::NODEV)) => return Ok(()),
            done => done?,
        }
        let qdiscs = all(self.0.qdisc().get().index(index).execute()).await?;
        let ingress = TcAttribute::Kind("ingress".into());
        let ours = qdiscs.iter().any(|qdisc| qdisc.header.index == index && qdisc.attributes.contains(&ingress));
        if !ours || !all(self.0.traffic_filter(index).get().ingress().execute()).await?.is_empty() {
            return Ok(());
        }
        let mut removal = self.0.qdisc().del(index);
        removal.message_mut().header.parent = TcHandle::INGRESS;
        removal.execute().await.or_else(unless(Errno::NOENT))
    }
}

/// Treats one error as success.
fn unless(failure: Errno) -> impl FnOnce(rtnetlink::Error) -> Answer<()> {
    move |error| if netlink::errno(&error) == Some(failure) { Ok(()) } else { Err(error) }
}
