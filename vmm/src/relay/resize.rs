// SPDX-License-Identifier: Apache-2.0
//! The machine's size follows its containers.
//!
//! ```text
//! limits go up, or a container is added    the machine grows ─> the guest takes it ─> the container's cgroup
//! limits go down, or a container is gone   the container's cgroup ─> the guest gives back what it can
//! the pod's limits change                  the machine grows, or the guest gives back what it can
//! ```
//!
//! The kubelet raises a pod's limits before those of its containers, and lowers them afterwards.
//! The machine has the size that needs more of the two.
//!
//! A machine that cannot be as large as its containers' limits is refused before anything changes.
//! What the guest does not take is taken back, and is an error. What it does not give back stays
//! asked for, and is none: the limits hold in the guest all the same.

use super::container::Container;
use super::{Relay, Running};
use crate::host::huge_pages;
use crate::machine::size::{Limits, Size, Sizing};
use magnetar_core::error::{Code, Error, Result};
use magnetar_core::ids::ContainerId;
use magnetar_core::pod_config::Resources;
use magnetar_core::sandbox::reply;
use magnetar_vm_agent_api::{PROCESSOR_FOUND, Request};
use serde_json::Value;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{SemaphorePermit, oneshot};
use tokio::time::{Instant, sleep};
use tracing::{Instrument, info, warn};

/// How long the guest may take for more memory and processors, in software emulation on a busy
/// host.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait for the guest to give back memory and processors. It goes on after that: a busy
/// guest needs seconds for 128 MiB.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(2);

/// The interval between questions how far the guest is.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// What to do if the containers' limits are more than the machine may grow to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beyond {
    /// Refuse: somebody asks for more than before.
    Refused,
    /// Grow as far as allowed: a limit is not a promise, and a new container starts with little.
    Cut,
}

impl Relay {
    /// Makes room for a container that is about to be made.
    ///
    /// # Errors
    /// `FailedPrecondition` if the guest does not take what it gets.
    pub(super) async fn make_room(&self, running: &Running, container: &Container, spec: &Value) -> Result<()> {
        let _turn = self.turn().await?;
        container.set_limits(Some(Limits::default().updated_by(&spec["linux"]["resources"])));
        let grown = self.grow(running, self.needed(running), Beyond::Cut).await;
        if grown.is_err() {
            container.set_limits(None);
        }
        grown
    }

    /// Changes a container's limits. What is begun is finished, even if the caller no longer waits.
    ///
    /// # Errors
    /// `FailedPrecondition` if the machine cannot become as large, or the guest's error. The
    /// machine and the container are then as before.
    pub(super) async fn update_limits(&self, container: Arc<Container>, resources: Value) -> Result<()> {
        let relay = self.clone();
        let update = async move { relay.update_limits_now(&container, &resources).await };
        let ended = || Error::new(Code::Unavailable, "the sandbox is shutting down");
        self.0.tasks.spawn(update.in_current_span()).await.map_err(|_| ended())?
    }

    async fn update_limits_now(&self, container: &Container, resources: &Value) -> Result<()> {
        let (running, id) = (self.running()?, &container.id);
        let _turn = self.turn().await?;
        let after = container.limits().unwrap_or_default().updated_by(resources);
        self.grow(running, self.needed_with(running, self.pod_limits(), Some((id, after))), Beyond::Refused).await?;
        let changed = running.answered(running.guest.tasks().update(id, resources.to_string().into_bytes())).await;
        if changed.is_ok() {
            container.set_limits(Some(after));
        }
        self.shrink(running).await;
        changed
    }

    /// Lets the machine follow the limits of the pod as a whole, and sends the outcome when it
    /// does: `FailedPrecondition` if it cannot, and nothing has changed.
    pub fn resize_pod(&self, resources: Resources, outcome: oneshot::Sender<Result<()>>) {
        let relay = self.clone();
        let resize = async move { reply(outcome, relay.resize_pod_now(&resources).await) };
        self.0.tasks.spawn(resize.in_current_span());
    }

    async fn resize_pod_now(&self, resources: &Resources) -> Result<()> {
        let running = self.running()?;
        let _turn = self.turn().await?;
        check_huge_pages(running.sizing.huge_pages, resources)?;
        let after = Limits::of_pod(resources);
        self.grow(running, self.needed_with(running, Some(after), None), Beyond::Refused).await?;
        *self.0.pod_limits.lock().unwrap_or_else(PoisonError::into_inner) = Some(after);
        self.shrink(running).await;
        Ok(())
    }

    /// Gives back what a removed container needed, while others go on.
    pub(super) fn give_back(&self) {
        let relay = self.clone();
        let give_back = async move {
            if let (Some(running), Ok(_turn)) = (relay.0.running.get(), relay.turn().await) {
                relay.shrink(running).await;
            }
        };
        self.0.tasks.spawn(give_back.in_current_span());
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>> {
        self.0.resizing.acquire().await.map_err(|_| Error::internal("the machine's size cannot change any more"))
    }

    fn pod_limits(&self) -> Option<Limits> {
        *self.0.pod_limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size that the pod and its containers need.
    fn needed(&self, running: &Running) -> Size {
        self.needed_with(running, self.pod_limits(), None)
    }

    /// The size that they need with these limits of the pod, and one container with other limits.
    fn needed_with(&self, running: &Running, pod: Option<Limits>, other: Option<(&ContainerId, Limits)>) -> Size {
        let all = self.0.containers.all();
        let containers = all.iter().filter_map(|(id, container)| match other {
            Some((changed, limits)) if changed == id => Some(limits),
            Some(_) | None => container.limits(),
        });
        running.sizing().needed(pod, containers)
    }

    async fn grow(&self, running: &Running, needed: Size, beyond: Beyond) -> Result<()> {
        let sizing = running.sizing();
        if beyond == Beyond::Refused {
            sizing.check(self.needed(running), needed)?;
        } else if !sizing.most.covers(needed) {
            info!(?needed, most = ?sizing.most, "the containers' limits are more than the machine may grow to");
        }
        let before = self.size(running);
        let wanted = needed.min(sizing.most).max(before);
        if wanted == before {
            return Ok(());
        }
        let taken = running.take(wanted).await;
        if let Err(error) = taken {
            running.restore(before).await;
            return Err(explained(error, wanted));
        }
        self.set_size(wanted);
        info!(?before, now = ?wanted, "the machine has grown");
        Ok(())
    }

    async fn shrink(&self, running: &Running) {
        let (before, needed) = (self.size(running), self.needed(running));
        let wanted = before.min(needed);
        if wanted == before || running.death().is_some() {
            return;
        }
        match running.release(wanted).await {
            Ok(now) if wanted.covers(now) => info!(?before, ?now, "the machine has shrunk"),
            Ok(now) => info!(?before, ?wanted, ?now, "the guest has not given back everything yet"),
            // It may have been switched off meanwhile.
            Err(error) => info!(%error, ?wanted, "cannot shrink the machine"),
        }
        self.set_size(wanted);
    }

    /// The size that was asked for last.
    fn size(&self, running: &Running) -> Size {
        let size = *self.0.size.lock().unwrap_or_else(PoisonError::into_inner);
        size.unwrap_or(running.sizing.start)
    }

    fn set_size(&self, size: Size) {
        *self.0.size.lock().unwrap_or_else(PoisonError::into_inner) = Some(size);
    }
}

/// Refuses another number of huge pages: the guest's kernel has set them aside when the pod was
/// made.
fn check_huge_pages(has: u32, asked: &Resources) -> Result<()> {
    let limits = asked.hugepage_limits.iter().map(|(size, limit)| (size.as_str(), *limit));
    let asked = huge_pages::pages(limits).map_err(|e| Error::precondition(e.to_string()))?;
    if asked == 0 || asked == has {
        return Ok(());
    }
    Err(Error::precondition(format!("its virtual machine has {has} huge pages, and cannot have {asked} while it runs: make the pod anew")))
}

/// The error of a guest that did not take what it got.
fn explained(error: Error, wanted: Size) -> Error {
    let Size { memory_mib, vcpus } = wanted;
    let what = format!("the pod's virtual machine cannot grow to {memory_mib} MiB and {vcpus} processors: {error}");
    // containerd takes Unavailable for the end of the container.
    Error::new(if error.code() == Code::Unavailable { Code::Unavailable } else { Code::FailedPrecondition }, what)
}

impl Running {
    /// How large the machine may be. Without hot-plug that is what it was started with.
    fn sizing(&self) -> Sizing {
        let most = if self.hypervisor.can_resize() { self.sizing.most } else { self.sizing.start };
        Sizing { most, ..self.sizing }
    }

    /// Lets the guest take more, and waits until it has.
    async fn take(&self, wanted: Size) -> Result<()> {
        self.hypervisor.resize(wanted).await?;
        self.tell(wanted).await?;
        let late = || Error::new(Code::DeadlineExceeded, format!("the guest has not taken it within {TAKE_TIMEOUT:?}"));
        let now = self.becomes(wanted, TAKE_TIMEOUT, |now| now.covers(wanted)).await?;
        if now.covers(wanted) { Ok(()) } else { Err(late()) }
    }

    /// Takes back what the guest did not take.
    async fn restore(&self, before: Size) {
        if let Err(error) = self.release(before).await
            && self.death().is_none()
        {
            warn!(%error, ?before, "cannot take back what the guest did not take");
        }
    }

    /// Asks the guest to give back what is more than `wanted`, and waits a while. Returns the size
    /// after that.
    async fn release(&self, wanted: Size) -> Result<Size> {
        self.tell(wanted).await?;
        self.becomes(wanted, GIVE_BACK_TIMEOUT, |now| wanted.covers(now)).await
    }

    /// Tells the agent the number of processors to use.
    async fn tell(&self, wanted: Size) -> Result<()> {
        let request = Request::Resize { vcpus: wanted.vcpus };
        self.guest.ask_on_new_connection(&request, PROCESSOR_FOUND + TAKE_TIMEOUT).await
    }

    /// Asks the hypervisor for a size until the machine's size is as expected, or the time is up.
    /// Returns its size.
    async fn becomes(&self, wanted: Size, patience: Duration, is_so: impl Fn(Size) -> bool) -> Result<Size> {
        let end = Instant::now() + patience;
        loop {
            let now = self.hypervisor.resize(wanted).await?;
            if is_so(now) || Instant::now() >= end {
                return Ok(now);
            }
            sleep(ASK_AGAIN).await;
        }
    }
}
