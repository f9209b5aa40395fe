// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::hypervisor::Promise;
use std::io::Write as _;

/// A hypervisor that records its orders.
#[derive(Clone, Default)]
struct Fake {
    recorded: Arc<Mutex<Vec<String>>>,
    /// How many times detach fails.
    refuses: Arc<Mutex<u32>>,
    hangs: bool,
}

impl Control for Fake {
    fn state(&mut self) -> Promise<'_, MachineState> {
        if self.hangs { Box::pin(std::future::pending()) } else { Box::pin(async { Ok(MachineState::Running) }) }
    }

    fn disks(&mut self) -> Option<&mut dyn HotPlug> {
        Some(self)
    }
}

impl HotPlug for Fake {
    fn attach<'a>(&'a mut self, disk: &'a Disk) -> Promise<'a, ()> {
        self.recorded.lock().unwrap().push(format!("+{}{}", disk.id, if disk.read_only { " ro" } else { "" }));
        Box::pin(async { Ok(()) })
    }

    fn detach(&mut self, disk: DiskId) -> Promise<'_, ()> {
        self.recorded.lock().unwrap().push(format!("-{disk}"));
        let mut refuses = self.refuses.lock().unwrap();
        let outcome = match refuses.checked_sub(1) {
            Some(left) => {
                *refuses = left;
                Err(Error::internal("not now"))
            }
            None => Ok(()),
        };
        Box::pin(async { outcome })
    }
}

/// A device for [`block::open`], which opens real devices: the first loop device, if this machine
/// has one and we may open it.
fn device() -> Option<DeviceNumbers> {
    let device = DeviceNumbers { major: 7, minor: 0 };
    let there = block::open(device, false).is_ok();
    if !there {
        // Written past libtest's capture, so that a skipped test is seen.
        let _unheard = writeln!(std::io::stderr(), "skipped: there is no loop device here");
    }
    there.then_some(device)
}

fn ids() -> [ContainerId; 2] {
    ["a", "b"].map(|id| ContainerId::parse(id).unwrap())
}

/// Runs `orders` about a device, for two containers, against `fake`. Returns what the hypervisor
/// was told; `None` if there is no such device.
async fn ordered(fake: Fake, orders: impl AsyncFnOnce(Connection, WantedDisk, [ContainerId; 2])) -> Option<Vec<String>> {
    let wanted = WantedDisk { device: device()?, read_only: false };
    let (disks, task) = Connection::new(Box::new(fake.clone()), None);
    tokio::join!(orders(disks, wanted, ids()), task);
    Some(fake.recorded.lock().unwrap().clone())
}

#[tokio::test]
async fn a_shared_device_is_attached_once_and_detached_after_its_last_container() {
    let recorded = ordered(Fake::default(), async |disks, writes, [a, b]| {
        let reads = WantedDisk { read_only: true, ..writes };
        let first = disks.attach(writes, &a).await.unwrap();
        assert_eq!(disks.attach(writes, &b).await.unwrap(), first);
        let second = disks.attach(reads, &b).await.unwrap();
        assert_eq!(disks.release(&a), []);
        assert_eq!(disks.release(&a), [], "it was released before");
        assert_eq!(disks.release(&b), [first, second]);
        disks.detach(first).await.unwrap();
        disks.detach(first).await.unwrap();
        assert!(disks.has_disks());
        assert_ne!(disks.attach(writes, &a).await.unwrap(), first, "no number is used twice");
        assert_eq!(disks.state().await.unwrap(), MachineState::Running);
    });
    let Some(recorded) = recorded.await else { return };
    assert_eq!(recorded, ["+disk-1", "+disk-2 ro", "-disk-1", "+disk-3"]);
}

#[tokio::test]
async fn a_disk_that_is_needed_again_before_its_detach_stays() {
    let recorded = ordered(Fake::default(), async |disks, wanted, [a, b]| {
        let disk = disks.attach(wanted, &a).await.unwrap();
        assert_eq!(disks.release(&a), [disk]);
        assert_eq!(disks.attach(wanted, &b).await.unwrap(), disk);
        disks.detach(disk).await.unwrap();
        assert_eq!(disks.release(&b), [disk], "the second container kept it");
        disks.detach(disk).await.unwrap();
        assert!(!disks.has_disks());
    });
    let Some(recorded) = recorded.await else { return };
    assert_eq!(recorded, ["+disk-1", "-disk-1"]);
}

#[tokio::test]
async fn a_failed_detach_is_retried_and_the_disk_is_not_given_out() {
    let fake = Fake { refuses: Arc::new(Mutex::new(3)), ..Fake::default() };
    let recorded = ordered(fake, async |disks, wanted, [a, b]| {
        let disk = disks.attach(wanted, &a).await.unwrap();
        assert_eq!(disks.release(&a), [disk]);
        assert!(disks.detach(disk).await.is_err());
        assert!(disks.attach(wanted, &b).await.is_err(), "the guest may have lost it");
        assert_eq!(disks.release(&b), [disk], "the next release retries it");
        assert!(disks.detach(disk).await.is_err());
        assert_ne!(disks.attach(wanted, &b).await.unwrap(), disk);
    });
    let Some(recorded) = recorded.await else { return };
    assert_eq!(recorded, ["+disk-1", "-disk-1", "-disk-1", "-disk-1", "-disk-1", "+disk-2"]);
}

#[tokio::test]
async fn a_missing_device_is_not_attached() {
    let (disks, task) = Connection::new(Box::<Fake>::default(), None);
    let orders = async move {
        let wanted = WantedDisk { device: DeviceNumbers { major: 0, minor: 0 }, read_only: false };
        let [id, _] = ids();
        assert!(disks.attach(wanted, &id).await.unwrap_err().to_string().contains("0:0"));
        assert_eq!(disks.release(&id), []);
    };
    tokio::join!(orders, task);
}

#[tokio::test(start_paused = true)]
async fn a_hypervisor_that_does_not_answer_is_not_asked_again() {
    let (disks, task) = Connection::new(Box::new(Fake { hangs: true, ..Fake::default() }), None);
    let orders = async move {
        assert_eq!(disks.state().await.unwrap_err().to_string(), "the hypervisor has not carried out an order within 20s");
        assert_eq!(disks.state().await.unwrap_err().to_string(), "the hypervisor has not carried out an earlier order within 20s");
    };
    tokio::join!(orders, task);
}

#[tokio::test]
async fn requests_after_the_machines_end_are_unavailable() {
    let (disks, task) = Connection::new(Box::<Fake>::default(), None);
    drop(task);
    assert_eq!(disks.state().await.unwrap_err().code(), Code::Unavailable);
}
