// SPDX-License-Identifier: Apache-2.0
//! How a machine ends, and why: one task waits for whatever comes first.

use super::boot::Processes;
use super::log_tail::{LogTail, end_in, panic_in};
use super::off_within;
use super::processes::Process;
use crate::hypervisor::connection::Connection;
use crate::hypervisor::{Hypervisor, MachineState, Verdict};
use crate::relay::guest;
use magnetar_core::reaper::Exit;
use magnetar_vm_agent_api::{Event, GIVES_UP, frame};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tracing::info;

/// Between two questions whether the agent lives.
const PULSE: Duration = Duration::from_secs(1);

/// How long it may take to answer: with the time between and what is asked of the hypervisor then, less than five seconds.
const ANSWER: Duration = Duration::from_millis(3400);

/// Between two tries to ask.
const AGAIN: Duration = Duration::from_millis(100);

/// How long the hypervisor may take to say whether the machine runs.
const STATE: Duration = Duration::from_millis(500);

/// How many events of a guest are heard at once. Further ones wait for the rest of [`EVENTS_WITHIN`].
const EVENTS: usize = 256;

/// As long as that takes at least.
const EVENTS_WITHIN: Duration = Duration::from_millis(250);

/// How long the reason for a broken connection, a process that ends, may be in coming.
const CAUSE: Duration = Duration::from_secs(2);

/// What shows that a machine lives, and what ends it.
pub struct Alive<S, C> {
    /// Its hypervisor's kind.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The connection to it.
    pub connection: Connection,
    /// The loop that serves that connection.
    pub serve: S,
    /// The loop that carries requests to the agent.
    pub carry: C,
    /// What the guest tells.
    pub events: guest::Connection,
    /// The agent is asked here whether it lives.
    pub pulse: guest::Connection,
    /// Whether it is to be switched off.
    pub off: watch::Receiver<bool>,
    /// Why it is good for nothing.
    pub condemned: mpsc::Receiver<String>,
}

impl<S: Future<Output = ()> + Send, C: Future<Output = ()> + Send> Alive<S, C> {
    /// Passes on what the guest tells until the machine is at its end, kills all that is left of it, and says why.
    pub async fn until_the_end(self, processes: &mut Processes, told: impl Fn(Event) + Send + Sync) -> String {
        let Self { hypervisor, connection, serve, carry, mut events, pulse, mut off, mut condemned } = self;
        let hypervisor = &*hypervisor;
        let patience = connection.clone();
        let listen = async {
            // What a guest has to tell comes in small numbers. One that tells without end must not cost the host a processor.
            let mut pace = tokio::time::interval(EVENTS_WITHIN);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                pace.tick().await;
                for _ in 0..EVENTS {
                    let Ok(event) = frame::read::<Event>(&mut events, frame::FROM_GUEST).await else { return };
                    told(event);
                }
            }
        };
        let broken = async {
            tokio::select! {
                () = listen => {}
                () = carry => {}
            }
        };
        let ordered = async { drop(off.wait_for(|off| *off).await) };
        let reason = tokio::select! {
            reason = processes.one_ended(hypervisor) => reason,
            reason = no_pulse(pulse, connection) => reason,
            // It serves as long as the pulse, at least, may ask.
            () = serve => "nobody talks to the hypervisor any more".into(),
            () = broken => match tokio::time::timeout(CAUSE, processes.one_ended(hypervisor)).await {
                Ok(reason) => reason,
                Err(_) => "the agent in the guest has closed its connections".into(),
            },
            Some(reason) = condemned.recv() => reason,
            () = ordered => {
                let _too_long = tokio::time::timeout(off_within(&patience), processes.hypervisor.ended()).await;
                "it was stopped".into()
            }
        };
        processes.kill().await;
        info!(reason, "the virtual machine has ended");
        reason
    }
}

impl Processes {
    /// Waits until one of them has ended, and says why. Cancel-safe.
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
            // The others end with the hypervisor.
            biased;
            exit = hypervisor.ended() => return of_hypervisor(kind, hypervisor, exit, console),
            ended = shared => ended,
            ended = vsock.ended() => ended,
        };
        // Whichever of them was seen first, where the hypervisor has ended that is why. A device ends well only because the
        // hypervisor has hung up, which it does some time before its own end, whatever that one will be.
        let hung_up = device.code == 0;
        match tokio::time::timeout(if hung_up { CAUSE } else { CAUSE / 5 }, hypervisor.ended()).await {
            Ok(exit) if hung_up || exit.code <= 128 => of_hypervisor(kind, hypervisor, exit, console),
            Ok(_) | Err(_) => reason,
        }
    }
}

/// Why a hypervisor has ended, as far as its exit and the guest's console tell.
fn of_hypervisor(kind: &dyn Hypervisor, process: &Process, exit: Exit, console: &LogTail) -> String {
    let said = console.last();
    match (panic_in(&said), end_in(&said), kind.verdict(exit)) {
        (Some(panic), _, _) => format!("the guest's kernel has panicked: {panic}"),
        (None, Some(reason), Verdict::Guest) => format!("{GIVES_UP}: {reason}"),
        (None, None, Verdict::Guest) => match console.last_line() {
            Some(line) => format!("the guest has switched itself off; the last line on its console: {line}"),
            // A processor that stops at a fault restarts, and that is the end, too.
            None => "the guest has restarted or switched itself off, and its console is empty".into(),
        },
        (None, _, Verdict::Hypervisor) => process.describe(exit),
    }
}

/// Asks the agent whether it lives, for as long as it does. Says why not. On a connection of its own: a question that waited
/// behind a request would take what is slow for what is dead.
async fn no_pulse(mut agent: guest::Connection, hypervisor: Connection) -> String {
    let mut unreached = None;
    loop {
        tokio::time::sleep(PULSE).await;
        match tokio::time::timeout(ANSWER, answered(&mut agent, &mut unreached)).await {
            Ok(()) => unreached = None,
            Err(_) => break,
        }
    }
    let why = unreached.map_or_else(String::new, |error| format!(": {error}"));
    let silent = format!("the agent in the guest has not answered within {ANSWER:?}{why}");
    match tokio::time::timeout(STATE, hypervisor.state()).await {
        Ok(Ok(MachineState::Paused)) => "the virtual machine was paused from outside".into(),
        Ok(Ok(MachineState::Panicked)) => "the guest's kernel has panicked".into(),
        Ok(Ok(MachineState::Running | MachineState::Other)) => format!("it hangs: {silent}"),
        Ok(Err(_)) | Err(_) => format!("the hypervisor hangs: {silent}, and neither has the hypervisor"),
    }
}

/// Asks the agent until it answers. Remembers why it could not be asked. Where a process has ended or all connections are broken,
/// somebody else finds that out meanwhile. Since 2026 Linux refuses vsock connections to a paused guest until it resumes, so keep
/// retrying.
async fn answered(agent: &mut guest::Connection, unreached: &mut Option<std::io::Error>) {
    while let Err(error) = guest::ping(agent).await {
        *unreached = Some(error);
        tokio::time::sleep(AGAIN).await;
    }
}
