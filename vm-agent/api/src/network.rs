// SPDX-License-Identifier: Apache-2.0
//! The configuration of the guest's network. It is the same as in the pod's network namespace on
//! the host.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Interfaces beside the loopback.
    pub interfaces: Vec<Interface>,
    /// All routes of the main table, in an order in which they can be made. The kernel adds none
    /// for an address.
    pub routes: Vec<Route>,
    /// Permanent neighbour entries.
    pub neighbours: Vec<Neighbour>,
}

/// One interface. The guest finds it by its hardware address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name in the pod, such as `eth0`: at most 15 bytes.
    pub name: String,
    /// Its hardware address.
    pub mac: Mac,
    /// The hardware address that the device has, if that is another one: the guest changes it to
    /// `mac`. A guest that began as a template has the template's devices.
    pub device: Option<Mac>,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
}

/// An address with the length of its network's prefix, in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// At most 32, or 128 with IPv6.
    pub length: u8,
}

/// One route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The destination. A default route has a length of 0.
    pub to: Prefix,
    /// The gateway, which may be of the other address family; none if the destination is on the
    /// link.
    pub gateway: Option<IpAddr>,
    /// The [`Interface::name`] of the outgoing interface.
    pub interface: String,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// The route's MTU in bytes; the interface's if none.
    pub mtu: Option<u32>,
    /// Scope, as in rtnetlink(7): 0 is the universe, 253 the link.
    pub scope: u8,
    /// Whether the gateway is on the link although no address covers it (`onlink`).
    pub on_link: bool,
    /// Metric; the kernel's choice if none.
    pub metric: Option<u32>,
}

/// A neighbour with its hardware address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    /// The [`Interface::name`] of its interface.
    pub interface: String,
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
