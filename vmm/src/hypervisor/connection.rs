// SPDX-License-Identifier: Apache-2.0
//! The connection to a hypervisor that runs, and the table of its machine's disks: one task gives the orders, one after the other.
//!
//! ```text
//! a container wants a device      attach ──> opened, attached, unless it is attached already ──> its DiskId
//! it is removed                   leave ───> which disks nobody has any more
//!                                 the guest lets go of those
//!                                 detach ──> taken from the machine, closed; unless somebody wants it again by then
//! ```
//!
//! A hypervisor that does not carry out an order in time is not talked to any more: nobody knows what it does with the next one.
//! The question for its state is asked only when a machine is thought to be dead, and finds out.

use super::{Control, Disk, DiskId, HotPlug, MachineState};
use crate::host::block::{self, Numbers};
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::ids::ContainerId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

/// How many orders may wait for the one that is being carried out.
const QUEUE: usize = 16;

/// How long the hypervisor may take for an order: it may have to wait for what the guest has under way on a slow device.
const CARRIED_OUT: Duration = Duration::from_secs(20);

/// The sending end of the orders, and the table of who has which disk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    orders: mpsc::Sender<Order>,
    table: Arc<Mutex<Table>>,
}

/// A device for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Which one.
    pub device: Numbers,
    /// Whether the container can only read it.
    pub read_only: bool,
}

#[derive(Debug)]
enum Order {
    State(oneshot::Sender<Result<MachineState>>),
    Attach(Wanted, ContainerId, oneshot::Sender<Result<DiskId>>),
    Detach(DiskId, oneshot::Sender<Result<()>>),
}

impl Connection {
    /// The connection, and the loop that gives the orders as long as there is one of these.
    pub fn new(control: Box<dyn Control>) -> (Self, impl Future<Output = ()> + Send) {
        let (orders, given) = mpsc::channel(QUEUE);
        let table = Arc::<Mutex<Table>>::default();
        (Self { orders, table: table.clone() }, serve(control, table, given))
    }

    /// Whether the machine runs.
    ///
    /// # Errors
    /// What the hypervisor says; `Unavailable` where the machine has ended.
    pub async fn state(&self) -> Result<MachineState> {
        self.order(Order::State).await
    }

    /// Attaches a device for a container, which has it until it [leaves](Self::leave), whatever comes of this.
    ///
    /// # Errors
    /// `Unimplemented` for a hypervisor that attaches none, where the device cannot be opened, what the hypervisor says, or
    /// `Unavailable` where the machine has ended.
    pub async fn attach(&self, wanted: Wanted, container: &ContainerId) -> Result<DiskId> {
        self.order(|answer| Order::Attach(wanted, container.clone(), answer)).await
    }

    /// A container is gone. Returns the disks that no other has, to be [detached](Self::detach), and those that could not be.
    pub fn leave(&self, container: &ContainerId) -> Vec<DiskId> {
        lock(&self.table).leave(container)
    }

    /// Whether the machine has a disk.
    pub fn has_disks(&self) -> bool {
        !lock(&self.table).attached.is_empty()
    }

    /// Takes a disk away, unless somebody has it. Idempotent.
    ///
    /// # Errors
    /// What the hypervisor says, and then it can be tried again; `Unavailable` where the machine has ended.
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

async fn serve(control: Box<dyn Control>, table: Arc<Mutex<Table>>, mut orders: mpsc::Receiver<Order>) {
    let mut talk = Talk(Some(Hypervisor(control)));
    while let Some(order) = orders.recv().await {
        // Who does not wait any more has no use for the answer; what was done is in the table.
        match order {
            Order::State(answer) => drop(answer.send(talk.order(async |hypervisor| hypervisor.0.state().await).await)),
            Order::Attach(wanted, container, answer) => drop(answer.send(attach(&mut talk, &table, wanted, container).await)),
            Order::Detach(disk, answer) => drop(answer.send(detach(&mut talk, &table, disk).await)),
        }
    }
}

/// The connection, as long as it is good.
struct Talk(Option<Hypervisor>);

/// Whoever carries them out.
struct Hypervisor(Box<dyn Control>);

impl Hypervisor {
    fn disks(&mut self) -> Result<&mut dyn HotPlug> {
        self.0.disks().ok_or_else(|| Error::unimplemented("this hypervisor attaches no disks to a machine that runs"))
    }
}

impl Talk {
    /// Gives an order, on which the loop waits: nothing else is said meanwhile.
    async fn order<T>(&mut self, order: impl AsyncFnOnce(&mut Hypervisor) -> Result<T>) -> Result<T> {
        let silent = |when: &str| {
            Err(Error::new(Code::Unavailable, format!("the hypervisor has {when}not carried out an order within {CARRIED_OUT:?}")))
        };
        let Some(control) = &mut self.0 else { return silent("once ") };
        match tokio::time::timeout(CARRIED_OUT, order(control)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.0 = None;
                silent("")
            }
        }
    }
}

async fn attach(talk: &mut Talk, table: &Mutex<Table>, wanted: Wanted, container: ContainerId) -> Result<DiskId> {
    let leaving = match lock(table).attached.get_mut(&wanted) {
        Some(Attached { id, leaving: true, .. }) => Some(*id),
        Some(attached) => {
            attached.users.insert(container);
            return Ok(attached.id);
        }
        None => None,
    };
    if let Some(left_over) = leaving {
        detach(talk, table, left_over).await?;
    }
    let Wanted { device, read_only } = wanted;
    let id = lock(table).next();
    let disk = Disk { id, device: block::open(device, read_only)?, read_only };
    talk.order(async |hypervisor| hypervisor.disks()?.attach(&disk).await).await?;
    debug!(%device, disk = %id, read_only, "attached");
    lock(table).attached.insert(wanted, Attached { id, users: [container].into(), leaving: false });
    Ok(id)
}

async fn detach(talk: &mut Talk, table: &Mutex<Table>, disk: DiskId) -> Result<()> {
    if !lock(table).leaves(disk) {
        return Ok(());
    }
    talk.order(async |hypervisor| hypervisor.disks()?.detach(disk).await).await?;
    lock(table).attached.retain(|_, attached| attached.id != disk);
    Ok(())
}

/// Who has what.
#[derive(Debug, Default)]
struct Table {
    made: u32,
    attached: BTreeMap<Wanted, Attached>,
}

/// One that is attached. What is wanted for reading and what is wanted for writing are two, so that the host keeps the one from
/// being written to, whatever the guest does.
#[derive(Debug)]
struct Attached {
    id: DiskId,
    users: BTreeSet<ContainerId>,
    /// Whether it was begun to take it away: the guest may have lost it, so nobody gets it any more.
    leaving: bool,
}

impl Table {
    fn next(&mut self) -> DiskId {
        self.made += 1;
        DiskId(self.made)
    }

    fn leave(&mut self, container: &ContainerId) -> Vec<DiskId> {
        let idle = self.attached.values_mut().filter_map(|attached| {
            let left = attached.users.remove(container) && attached.users.is_empty();
            (left || attached.leaving).then_some(attached.id)
        });
        idle.collect()
    }

    /// Whether a disk is there and nobody has it, so that it leaves from now on.
    fn leaves(&mut self, disk: DiskId) -> bool {
        let idle = self.attached.values_mut().find(|attached| attached.id == disk && attached.users.is_empty());
        idle.map(|attached| attached.leaving = true).is_some()
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
