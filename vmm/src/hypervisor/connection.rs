// SPDX-License-Identifier: Apache-2.0
//! The connection to a running hypervisor, and the table of its machine's disks. One task sends the
//! orders, one after the other.
//!
//! ```text
//! a container needs a device   attach  ──> open and attach it, unless it is attached ──> its DiskId
//! the container is removed     release ──> the disks that no container uses any more
//!                              the guest stops using those
//!                              detach  ──> detach and close them, unless a container uses them again
//! ```
//!
//! After an order timed out, no further orders are sent: the hypervisor's reaction would be
//! unknown. The machine's state is asked for only when the machine seems dead, and that question
//! reveals a timeout as well.

use super::disk_nodes::DiskNodes;
use super::{Control, Disk, DiskId, HotPlug, MachineState, Resize};
use crate::host::block::{self, DeviceNumbers};
use crate::machine::size::Size;
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::ids::ContainerId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

/// How many orders may wait behind the current one.
const QUEUE: usize = 16;

/// How long the hypervisor may take for an order. It may have to wait for pending requests of the
/// guest on a slow device.
const ORDER_TIMEOUT: Duration = Duration::from_secs(20);

/// The queue of orders, and the table of disks and their users. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    orders: mpsc::Sender<Order>,
    table: Arc<Mutex<Table>>,
    can_resize: bool,
}

/// A block device that a container needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WantedDisk {
    /// The device.
    pub device: DeviceNumbers,
    /// Whether the container can only read it.
    pub read_only: bool,
}

#[derive(Debug)]
enum Order {
    State(oneshot::Sender<Result<MachineState>>),
    Attach(WantedDisk, ContainerId, oneshot::Sender<Result<DiskId>>),
    Detach(DiskId, oneshot::Sender<Result<()>>),
    Resize(Size, oneshot::Sender<Result<Size>>),
}

impl Connection {
    /// The connection, and the loop that executes its orders. The loop runs as long as a clone of
    /// the connection exists. `nodes` are for a hypervisor that opens disks itself.
    pub fn new(mut control: Box<dyn Control>, nodes: Option<DiskNodes>) -> (Self, impl Future<Output = ()> + Send) {
        let (orders, given) = mpsc::channel(QUEUE);
        let table = Arc::<Mutex<Table>>::default();
        let can_resize = control.size().is_some();
        (Self { orders, table: table.clone(), can_resize }, serve(control, nodes, table, given))
    }

    /// Whether the machine's size can change.
    pub fn can_resize(&self) -> bool {
        self.can_resize
    }

    /// Asks for another size of the machine. Returns its present size: see [`Resize::resize`].
    ///
    /// # Errors
    /// `Unimplemented` if the machine's size cannot change; `Unavailable` if the machine has ended;
    /// errors of the hypervisor.
    pub async fn resize(&self, wanted: Size) -> Result<Size> {
        self.order(|answer| Order::Resize(wanted, answer)).await
    }

    /// The machine's state.
    ///
    /// # Errors
    /// Errors of the hypervisor; `Unavailable` if the machine has ended.
    pub async fn state(&self) -> Result<MachineState> {
        self.order(Order::State).await
    }

    /// Attaches a device for a container. The container has it until it is
    /// [released](Self::release), whatever this call returns.
    ///
    /// # Errors
    /// `Unimplemented` if the hypervisor cannot attach disks; `Unavailable` if the machine has
    /// ended; errors of opening the device and of the hypervisor.
    pub async fn attach(&self, wanted: WantedDisk, container: &ContainerId) -> Result<DiskId> {
        self.order(|answer| Order::Attach(wanted, container.clone(), answer)).await
    }

    /// Releases a removed container's disks. Returns the disks to [detach](Self::detach): those
    /// that no other container has, and those whose earlier detach failed.
    pub fn release(&self, container: &ContainerId) -> Vec<DiskId> {
        lock(&self.table).release(container)
    }

    /// Whether any disk is attached.
    pub fn has_disks(&self) -> bool {
        !lock(&self.table).attached.is_empty()
    }

    /// Detaches a disk, unless a container has it. Idempotent.
    ///
    /// # Errors
    /// Errors of the hypervisor, after which the call can be repeated; `Unavailable` if the machine
    /// has ended.
    pub async fn detach(&self, disk: DiskId) -> Result<()> {
        self.order(|answer| Order::Detach(disk, answer)).await
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<Result<T>>) -> Order) -> Result<T> {
        let gone = || Error::new(Code::Unavailable, "the virtual machine has ended");
        let (answer, answered) = oneshot::channel();
        self.orders.send(order(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

async fn serve(control: Box<dyn Control>, nodes: Option<DiskNodes>, table: Arc<Mutex<Table>>, mut orders: mpsc::Receiver<Order>) {
    let mut control = TimedControl { handle: Some(ControlHandle(control)), nodes };
    while let Some(order) = orders.recv().await {
        // A caller that left needs no answer. The table has the result.
        match order {
            Order::State(answer) => drop(answer.send(control.order(async |hypervisor| hypervisor.0.state().await).await)),
            Order::Attach(wanted, container, answer) => drop(answer.send(attach(&mut control, &table, wanted, container).await)),
            Order::Detach(disk, answer) => drop(answer.send(detach(&mut control, &table, disk).await)),
            Order::Resize(wanted, answer) => {
                drop(answer.send(control.order(async |hypervisor| hypervisor.size()?.resize(wanted).await).await));
            }
        }
    }
}

/// The control connection, until an order times out; and the nodes of disks, if the hypervisor
/// opens them itself.
struct TimedControl {
    handle: Option<ControlHandle>,
    nodes: Option<DiskNodes>,
}

/// Gives an error if the hypervisor has no [`HotPlug`] or no [`Resize`].
struct ControlHandle(Box<dyn Control>);

impl ControlHandle {
    fn disks(&mut self) -> Result<&mut dyn HotPlug> {
        self.0.disks().ok_or_else(|| Error::unimplemented("this hypervisor cannot attach disks to a running machine"))
    }

    fn size(&mut self) -> Result<&mut dyn Resize> {
        self.0.size().ok_or_else(|| Error::unimplemented("this hypervisor cannot change the size of a running machine"))
    }
}

impl TimedControl {
    /// The hypervisor does not have this disk open, and does not get it again.
    fn take_back_node(&mut self, disk: DiskId) {
        if let Some(Err(error)) = self.nodes.as_mut().map(|nodes| nodes.take_back(disk)) {
            warn!(%disk, %error, "the hypervisor could open a device that it needs no more, until the pod ends");
        }
    }

    /// Executes one order. The loop waits for it.
    async fn order<T>(&mut self, order: impl AsyncFnOnce(&mut ControlHandle) -> Result<T>) -> Result<T> {
        let silent = |which: &str| {
            Err(Error::new(Code::Unavailable, format!("the hypervisor has not carried out an {which}order within {ORDER_TIMEOUT:?}")))
        };
        let Some(control) = &mut self.handle else { return silent("earlier ") };
        match tokio::time::timeout(ORDER_TIMEOUT, order(control)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.handle = None;
                silent("")
            }
        }
    }
}

async fn attach(control: &mut TimedControl, table: &Mutex<Table>, wanted: WantedDisk, container: ContainerId) -> Result<DiskId> {
    let leaving = match lock(table).attached.get_mut(&wanted) {
        Some(Attached { id, leaving: true, .. }) => Some(*id),
        Some(attached) => {
            attached.users.insert(container);
            return Ok(attached.id);
        }
        None => None,
    };
    if let Some(left_over) = leaving {
        detach(control, table, left_over).await?;
    }
    let WantedDisk { device, read_only } = wanted;
    let id = lock(table).next_id();
    let disk = Disk { id, device: block::open(device, read_only)?, read_only };
    if let Some(nodes) = &mut control.nodes {
        nodes.give(id, wanted)?;
    }
    if let Err(error) = control.order(async |hypervisor| hypervisor.disks()?.attach(&disk).await).await {
        control.take_back_node(id);
        return Err(error);
    }
    debug!(%device, disk = %id, read_only, "attached");
    lock(table).attached.insert(wanted, Attached { id, users: [container].into(), leaving: false });
    Ok(id)
}

async fn detach(control: &mut TimedControl, table: &Mutex<Table>, disk: DiskId) -> Result<()> {
    if !lock(table).begin_detach(disk) {
        return Ok(());
    }
    control.order(async |hypervisor| hypervisor.disks()?.detach(disk).await).await?;
    control.take_back_node(disk);
    lock(table).attached.retain(|_, attached| attached.id != disk);
    Ok(())
}

/// The attached disks and their users.
#[derive(Debug, Default)]
struct Table {
    made: u32,
    attached: BTreeMap<WantedDisk, Attached>,
}

/// An attached disk. A device that is needed both read-only and writable becomes two disks. So the
/// host keeps the read-only one from being written, whatever the guest does.
#[derive(Debug)]
struct Attached {
    id: DiskId,
    users: BTreeSet<ContainerId>,
    /// Whether a detach has begun. The guest may have lost the disk, so no container gets it any
    /// more.
    leaving: bool,
}

impl Table {
    fn next_id(&mut self) -> DiskId {
        self.made += 1;
        DiskId(self.made)
    }

    fn release(&mut self, container: &ContainerId) -> Vec<DiskId> {
        let idle = self.attached.values_mut().filter_map(|attached| {
            let left = attached.users.remove(container) && attached.users.is_empty();
            (left || attached.leaving).then_some(attached.id)
        });
        idle.collect()
    }

    /// Marks a disk as leaving if no container has it. Returns whether that is so.
    fn begin_detach(&mut self, disk: DiskId) -> bool {
        let idle = self.attached.values_mut().find(|attached| attached.id == disk && attached.users.is_empty());
        idle.map(|attached| attached.leaving = true).is_some()
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
