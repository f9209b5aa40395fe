// SPDX-License-Identifier: Apache-2.0
//! How a machine ends, and why. One task waits for whichever cause comes first.

use super::boot::Processes;
use super::console::{agent_error_in, panic_in};
use super::off_timeout;
use super::processor_wait::ProcessorWait;
use crate::hypervisor::connection::Connection;
use crate::hypervisor::{EventWatch, Hypervisor, MachineEvent, MachineState, Verdict};
use crate::relay::guest;
use magnetar_core::confined::log_tail::LogTail;
use magnetar_core::confined::process::Process;
use magnetar_core::reaper::Exit;
use magnetar_vm_agent_api::{Event, GIVES_UP, frame};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::info;

/// The interval between two pings of the agent.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// How long the agent may take to answer a ping, not counting the time in which the hypervisor
/// waited for a processor of the host. With the interval and the question to the hypervisor, a dead
/// agent is noticed in less than five seconds where processors are free.
const PING_TIMEOUT: Duration = Duration::from_millis(3400);

/// How long the agent may take at the most.
const LONGEST_PING: Duration = Duration::from_secs(30);

/// How often to look whether the hypervisor waits for a processor, while the agent is silent.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The interval between two attempts to send a ping.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long the hypervisor may take to report the machine's state.
const STATE_TIMEOUT: Duration = Duration::from_millis(500);

/// How many events of a guest are passed on at once. Further ones wait for the rest of
/// [`EVENT_INTERVAL`].
const EVENTS: usize = 256;

/// The least time for so many events.
const EVENT_INTERVAL: Duration = Duration::from_millis(250);

/// How long to wait for a process to end, which explains why a connection broke.
pub(super) const CAUSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the task watches: signs of life, and requests to end the machine.
pub struct MachineWatch<S, C> {
    /// The kind of hypervisor.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The connection to the hypervisor.
    pub connection: Connection,
    /// The loop that serves that connection.
    pub serve: S,
    /// The loop that sends requests to the agent.
    pub requests: C,
    /// The connection for the guest's events.
    pub events: guest::Connection,
    /// What the hypervisor reports by itself, if it does.
    pub reported: Option<EventWatch>,
    /// The connection for pings of the agent.
    pub pulse: guest::Connection,
    /// Becomes true when the machine must be switched off.
    pub off: watch::Receiver<bool>,
    /// Takes reasons why the machine is unusable.
    pub condemned: mpsc::Receiver<String>,
}

impl<S: Future<Output = ()> + Send, C: Future<Output = ()> + Send> MachineWatch<S, C> {
    /// Passes on the guest's events until the machine ends. Then kills all remaining processes, and
    /// returns the reason.
    pub async fn run_until_end(self, processes: &mut Processes, on_event: impl Fn(Event) + Send + Sync) -> String {
        let Self { hypervisor, connection, serve, requests, mut events, reported, pulse, mut off, mut condemned } = self;
        let (hypervisor, hypervisor_pid) = (&*hypervisor, processes.hypervisor.pid);
        let patience = connection.clone();
        let listen = async {
            // A guest has few events. One that sends them without end must not cost the host a
            // processor.
            let mut pace = tokio::time::interval(EVENT_INTERVAL);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                pace.tick().await;
                for _ in 0..EVENTS {
                    let Ok(event) = frame::read::<Event>(&mut events, frame::FROM_GUEST).await else { return };
                    on_event(event);
                }
            }
        };
        let broken = async {
            tokio::select! {
                () = listen => {}
                () = requests => {}
            }
        };
        let ordered = async { drop(off.wait_for(|off| *off).await) };
        let mut reported = reported.unwrap_or_else(|| Box::pin(std::future::pending()));
        let reason = tokio::select! {
            reason = processes.end_reason(hypervisor, &mut reported) => reason,
            reason = ping_until_silent(pulse, connection, hypervisor_pid) => reason,
            // `serve` runs while a `Connection` exists, and the ping loop has one.
            () = serve => "the connection to the hypervisor is no longer served".into(),
            () = broken => match tokio::time::timeout(CAUSE_TIMEOUT, processes.end_reason(hypervisor, &mut reported)).await {
                Ok(reason) => reason,
                Err(_) => "the agent in the guest has closed its connections".into(),
            },
            Some(reason) = condemned.recv() => reason,
            () = ordered => {
                let _too_long = tokio::time::timeout(off_timeout(&patience), processes.hypervisor.ended()).await;
                "it was stopped".into()
            }
        };
        processes.kill().await;
        info!(reason, "the virtual machine has ended");
        reason
    }
}

impl Processes {
    /// Waits until one of the processes has ended, or the hypervisor reports the guest's end.
    /// Returns the reason.
    async fn end_reason(&mut self, kind: &dyn Hypervisor, reported: &mut EventWatch) -> String {
        let console = self.console.clone();
        tokio::select! {
            reason = self.one_ended(kind) => reason,
            event = reported => match event {
                MachineEvent::Restarted => guest_end_reason(&console),
            },
        }
    }

    /// Waits until one of the processes has ended. Returns the reason. Cancel-safe.
    pub(super) async fn one_ended(&mut self, kind: &dyn Hypervisor) -> String {
        let Self { hypervisor, virtiofsd, vsock, console } = self;
        let shared = async {
            match virtiofsd {
                Some(virtiofsd) => {
                    let exit = virtiofsd.ended().await;
                    (exit, virtiofsd.describe(exit))
                }
                None => std::future::pending().await,
            }
        };
        let (device, reason) = tokio::select! {
            // Check the hypervisor first: the others end with it.
            biased;
            exit = hypervisor.ended() => return hypervisor_end_reason(kind, hypervisor, exit, console),
            ended = shared => ended,
            ended = vsock.ended() => ended,
        };
        // If the hypervisor has ended, that is the cause, whichever end was seen first. A device
        // process exits with code 0 only after the hypervisor hung up, which happens some time
        // before the hypervisor's own end.
        let hung_up = device.code == 0;
        match tokio::time::timeout(if hung_up { CAUSE_TIMEOUT } else { CAUSE_TIMEOUT / 5 }, hypervisor.ended()).await {
            Ok(exit) if hung_up || exit.code <= 128 => hypervisor_end_reason(kind, hypervisor, exit, console),
            Ok(_) | Err(_) => reason,
        }
    }
}

/// Why the hypervisor has ended, according to its exit and the guest's console.
fn hypervisor_end_reason(kind: &dyn Hypervisor, process: &Process, exit: Exit, console: &LogTail) -> String {
    match (panic_in(&console.last()), kind.verdict(exit)) {
        (None, Verdict::Hypervisor) => process.describe(exit),
        (Some(_), _) => guest_end_reason(console),
        // It may exit so after a failure of its own as well.
        (None, Verdict::Guest) => match process.errors.last_line().filter(|line| kind.is_failure(line)) {
            Some(line) => format!("the hypervisor has failed: {line}"),
            None => guest_end_reason(console),
        },
    }
}

/// Why the guest has ended, according to its console.
fn guest_end_reason(console: &LogTail) -> String {
    let said = console.last();
    match (panic_in(&said), agent_error_in(&said)) {
        (Some(panic), _) => format!("the guest's kernel has panicked: {panic}"),
        (None, Some(reason)) => format!("{GIVES_UP}: {reason}"),
        (None, None) => match console.last_line() {
            Some(line) => format!("the guest has switched itself off; the last line on its console: {line}"),
            // A triple fault restarts the guest, which also ends the machine.
            None => "the guest has restarted or switched itself off, and its console is empty".into(),
        },
    }
}

/// Pings the agent until it stops answering. Returns the reason. It has a connection of its own: a
/// ping that waits behind a slow request would make the agent look dead.
async fn ping_until_silent(mut agent: guest::Connection, hypervisor: Connection, hypervisor_pid: u32) -> String {
    let mut unreached = None;
    let starved = loop {
        tokio::time::sleep(PING_INTERVAL).await;
        let mut wait = None;
        let looks = || wait.get_or_insert_with(|| ProcessorWait::of(hypervisor_pid)).since_last();
        match wait_patiently(ping_until_answered(&mut agent, &mut unreached), looks).await {
            Ok(()) => unreached = None,
            Err(starved) => break starved,
        }
    };
    let why = unreached.map_or_else(String::new, |error| format!(": {error}"));
    let except = match starved.as_secs() {
        0 => String::new(),
        seconds => format!(", and {seconds} s more in which the hypervisor waited for a processor of the host"),
    };
    let silent = format!("the agent in the guest has not answered within {PING_TIMEOUT:?}{except}{why}");
    match tokio::time::timeout(STATE_TIMEOUT, hypervisor.state()).await {
        Ok(Ok(MachineState::Paused)) => "the virtual machine was paused from outside".into(),
        Ok(Ok(MachineState::Panicked)) => "the guest's kernel has panicked".into(),
        Ok(Ok(MachineState::Running | MachineState::Other)) => format!("it hangs: {silent}"),
        Ok(Err(_)) | Err(_) => format!("the hypervisor hangs: {silent}, and neither has the hypervisor"),
    }
}

/// Waits for the agent's answer for at most [`PING_TIMEOUT`]. Time in which the hypervisor waited
/// for a processor does not count: `since_last` says how much that was since its last call. Fails
/// with the time that did not count. A host that is busy for a while must not cost pods their
/// lives.
async fn wait_patiently(answer: impl Future<Output = ()>, mut since_last: impl FnMut() -> Duration) -> Result<(), Duration> {
    let (begin, mut starved) = (Instant::now(), Duration::ZERO);
    tokio::pin!(answer);
    while tokio::time::timeout(LOOK_INTERVAL, &mut answer).await.is_err() {
        starved += since_last();
        let silent = begin.elapsed();
        if silent.saturating_sub(starved) >= PING_TIMEOUT || silent >= LONGEST_PING {
            return Err(starved);
        }
    }
    if begin.elapsed() >= PING_TIMEOUT {
        info!(after = ?begin.elapsed(), ?starved, "the agent in the guest answered late; `starved` is how long the hypervisor waited for a processor meanwhile");
    }
    Ok(())
}

/// Pings the agent until it answers. Keeps the last error. If a process ended or all connections
/// broke, another task notices. Since 2026 Linux refuses vsock connections to a paused guest until
/// it resumes, so keep retrying.
async fn ping_until_answered(agent: &mut guest::Connection, unreached: &mut Option<std::io::Error>) {
    while let Err(error) = guest::ping(agent).await {
        *unreached = Some(error);
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long an agent that never answers is waited for, if the hypervisor has to wait for a
    /// processor for this part of each interval.
    async fn patience(starved: Duration) -> Duration {
        let begin = Instant::now();
        assert!(wait_patiently(std::future::pending(), || starved).await.is_err());
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_has_more_time_while_its_hypervisor_waits_for_a_processor() {
        let is_within = |took: Duration, limit: Duration| took >= limit && took < limit + 2 * LOOK_INTERVAL;
        assert!(is_within(patience(Duration::ZERO).await, PING_TIMEOUT));
        assert!(is_within(patience(LOOK_INTERVAL / 2).await, 2 * PING_TIMEOUT));
        assert!(is_within(patience(LOOK_INTERVAL).await, LONGEST_PING));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_looks_at_the_hypervisor_of_an_agent_that_answers() {
        let looks = || panic!("somebody has looked");
        assert_eq!(wait_patiently(tokio::time::sleep(LOOK_INTERVAL / 2), looks).await, Ok(()));
    }
}
