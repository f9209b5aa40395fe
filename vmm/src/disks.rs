// SPDX-License-Identifier: Apache-2.0
//! The connection to a hypervisor that runs, and the disks of its machine: one task has both, and does what it is told, one
//! thing after the other.
//!
//! ```text
//! a container wants a device      attach ──> opened, attached, unless another container has it already ──> its DiskId
//! it is removed                   leave ───> which disks nobody has any more
//!                                 the guest lets go of those
//!                                 detach ──> taken from the machine, closed
//! ```
//!
//! An order ends within the time that the hypervisor takes to answer; so does the question for its state, which is asked only when
//! a machine is thought to be dead, and finds out.

use crate::block::{self, Numbers};
use crate::hypervisor::{Control, Disk, DiskId, MachineState};
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::ids::ContainerId;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

/// How many orders may wait for the one that is being carried out.
const QUEUE: usize = 16;

/// The orders' end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Disks(mpsc::Sender<Order>);

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
    Leave(ContainerId, oneshot::Sender<Vec<DiskId>>),
    Detach(DiskId, oneshot::Sender<Result<()>>),
}

/// One that is attached. What is wanted for reading and what is wanted for writing are two, so that the host keeps the one from
/// being written to, whatever the guest does.
#[derive(Debug)]
struct Attached {
    id: DiskId,
    users: BTreeSet<ContainerId>,
}

impl Disks {
    /// The orders' end, and the task that carries them out as long as there is one of these.
    pub fn new<C: Control>(control: C) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, orders) = mpsc::channel(QUEUE);
        (Self(sender), serve(control, orders))
    }

    /// Whether the machine runs.
    ///
    /// # Errors
    /// What the hypervisor says; `Unavailable` where the machine has ended.
    pub async fn state(&self) -> Result<MachineState> {
        self.order(Order::State).await?
    }

    /// Attaches a device for a container, which has it until it [leaves](Self::leave), whatever comes of this.
    ///
    /// # Errors
    /// Where the device cannot be opened, what the hypervisor says, or `Unavailable` where the machine has ended.
    pub async fn attach(&self, wanted: Wanted, container: &ContainerId) -> Result<DiskId> {
        self.order(|answer| Order::Attach(wanted, container.clone(), answer)).await?
    }

    /// A container is gone. Returns the disks that no other has: from now on nobody gets them.
    ///
    /// # Errors
    /// `Unavailable` where the machine has ended.
    pub async fn leave(&self, container: &ContainerId) -> Result<Vec<DiskId>> {
        self.order(|answer| Order::Leave(container.clone(), answer)).await
    }

    /// Takes a disk away that nobody has.
    ///
    /// # Errors
    /// What the hypervisor says; `Unavailable` where the machine has ended.
    pub async fn detach(&self, disk: DiskId) -> Result<()> {
        self.order(|answer| Order::Detach(disk, answer)).await?
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T> {
        let gone = || Error::new(Code::Unavailable, "the virtual machine has ended");
        let (answer, answered) = oneshot::channel();
        self.0.send(order(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

async fn serve<C: Control>(mut control: C, mut orders: mpsc::Receiver<Order>) {
    let mut table = Table::default();
    while let Some(order) = orders.recv().await {
        // Who does not wait any more has no use for the answer; what was done is in the table.
        match order {
            Order::State(answer) => drop(answer.send(control.state().await)),
            Order::Attach(wanted, container, answer) => drop(answer.send(attach(&mut control, &mut table, wanted, container).await)),
            Order::Leave(container, answer) => drop(answer.send(table.leave(&container))),
            Order::Detach(disk, answer) => drop(answer.send(control.detach(disk).await)),
        }
    }
}

async fn attach<C: Control>(control: &mut C, table: &mut Table, wanted: Wanted, container: ContainerId) -> Result<DiskId> {
    if let Some(attached) = table.attached.get_mut(&wanted) {
        attached.users.insert(container);
        return Ok(attached.id);
    }
    let Wanted { device, read_only } = wanted;
    let disk = Disk { id: table.next(), device: block::open(device, read_only)?, read_only };
    control.attach(&disk).await?;
    debug!(%device, disk = %disk.id, read_only, "attached");
    table.attached.insert(wanted, Attached { id: disk.id, users: [container].into() });
    Ok(disk.id)
}

/// Who has what.
#[derive(Debug, Default)]
struct Table {
    made: u32,
    attached: BTreeMap<Wanted, Attached>,
}

impl Table {
    fn next(&mut self) -> DiskId {
        self.made += 1;
        DiskId(self.made)
    }

    fn leave(&mut self, container: &ContainerId) -> Vec<DiskId> {
        let mut idle = Vec::new();
        self.attached.retain(|_, attached| {
            if attached.users.remove(container) && attached.users.is_empty() {
                idle.push(attached.id);
            }
            !attached.users.is_empty()
        });
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A hypervisor that does everything, and tells what.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Vec<String>>>);

    impl Control for Fake {
        async fn state(&mut self) -> Result<MachineState> {
            Ok(MachineState::Running)
        }

        async fn attach(&mut self, disk: &Disk) -> Result<()> {
            self.0.lock().unwrap().push(format!("+{}{}", disk.id, if disk.read_only { " ro" } else { "" }));
            Ok(())
        }

        async fn detach(&mut self, disk: DiskId) -> Result<()> {
            self.0.lock().unwrap().push(format!("-{disk}"));
            Ok(())
        }
    }

    /// For [`block::open`], which opens what there is: the first loop device, if this machine has one and we may.
    fn device() -> Option<Numbers> {
        let device = Numbers { major: 7, minor: 0 };
        block::open(device, false).is_ok().then_some(device)
    }

    #[tokio::test]
    async fn a_device_is_attached_once_and_leaves_with_the_last_container() {
        let Some(device) = device() else { return eprintln!("skipped: there is no loop device here") };
        let fake = Fake::default();
        let (disks, task) = Disks::new(fake.clone());
        let [a, b] = ["a", "b"].map(|id| ContainerId::parse(id).unwrap());
        let orders = async move {
            let (writes, reads) = (Wanted { device, read_only: false }, Wanted { device, read_only: true });
            let first = disks.attach(writes, &a).await.unwrap();
            assert_eq!(disks.attach(writes, &b).await.unwrap(), first);
            let second = disks.attach(reads, &b).await.unwrap();
            assert_eq!(disks.leave(&a).await.unwrap(), []);
            assert_eq!(disks.leave(&a).await.unwrap(), [], "it has left already");
            assert_eq!(disks.leave(&b).await.unwrap(), [first, second]);
            disks.detach(first).await.unwrap();
            assert_ne!(disks.attach(writes, &a).await.unwrap(), first, "no number is used twice");
            assert_eq!(disks.state().await.unwrap(), MachineState::Running);
        };
        tokio::join!(orders, task);
        assert_eq!(*fake.0.lock().unwrap(), ["+disk-1", "+disk-2 ro", "-disk-1", "+disk-3"]);
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_is_nobodys() {
        let (disks, task) = Disks::new(Fake::default());
        let orders = async move {
            let wanted = Wanted { device: Numbers { major: 0, minor: 0 }, read_only: false };
            let id = ContainerId::parse("a").unwrap();
            assert!(disks.attach(wanted, &id).await.unwrap_err().to_string().contains("0:0"));
            assert_eq!(disks.leave(&id).await.unwrap(), []);
        };
        tokio::join!(orders, task);
    }

    #[tokio::test]
    async fn who_asks_a_machine_that_has_ended_is_told() {
        let (disks, task) = Disks::new(Fake::default());
        drop(task);
        assert_eq!(disks.state().await.unwrap_err().code(), Code::Unavailable);
    }
}
