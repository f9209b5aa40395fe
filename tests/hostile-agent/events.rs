// SPDX-License-Identifier: Apache-2.0
//! What the host is told unasked.

use crate::boot::Result;
use crate::mode::Mode;
use crate::{Guest, wire};
use magnetar_vm_agent_api::Event;
use std::fs::File;
use std::io::Write;
use std::sync::{Condvar, Mutex, PoisonError};

/// What is to be told, and the containers that the host has made.
#[derive(Default)]
pub struct Events {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: Vec<Event>,
    container: Option<String>,
}

impl Events {
    /// A container was made.
    pub fn made(&self, container: &str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).container = Some(container.to_owned());
        self.changed.notify_all();
    }

    /// To be told soon.
    pub fn add(&self, event: Event) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).queue.push(event);
        self.changed.notify_all();
    }

    /// What is to be told by now.
    fn now(&self) -> Vec<Event> {
        std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).queue)
    }

    /// Waits until there is something to be told.
    fn next(&self) -> Vec<Event> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.changed.wait_while(state, |state| state.queue.is_empty()).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.queue)
    }

    /// Waits for the first container.
    pub fn container(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.changed.wait_while(state, |state| state.container.is_none()).unwrap_or_else(PoisonError::into_inner);
        state.container.clone().unwrap_or_default()
    }
}

/// The end of a process.
pub fn exited(container: &str, exec: Option<&str>, code: u32) -> Event {
    Event::Exited { container: container.to_owned(), exec: exec.map(str::to_owned), code }
}

/// Tells events.
pub fn tell(guest: &Guest, mut host: File) -> Result<()> {
    if guest.mode == Mode::Lies {
        let real = guest.events.container();
        for lie in lies(&real) {
            wire::write(&mut host, &lie)?;
        }
    }
    if guest.mode == Mode::Floods {
        let real = guest.events.container();
        let mut flood = Vec::new();
        for event in [Event::OutOfMemory { container: real.clone() }, exited(&real, Some("nobody"), 0), exited("nobody", None, 0)] {
            wire::write(&mut flood, &event)?;
        }
        let flood = flood.repeat(50);
        loop {
            host.write_all(&flood)?;
            for event in guest.events.now() {
                wire::write(&mut host, &event)?;
            }
        }
    }
    loop {
        for event in guest.events.next() {
            wire::write(&mut host, &event)?;
        }
    }
}

/// Of these all but the last are of nothing that there is. By the last the container has ended,
/// which nobody has told to, with a code that there is not.
fn lies(real: &str) -> Vec<Event> {
    let names = ["", ".", "..", "../../../etc", "/", "a\0b", "nobody", &"x".repeat(9000)];
    let mut lies: Vec<Event> =
        names.iter().flat_map(|name| [exited(name, None, 0), Event::OutOfMemory { container: (*name).to_owned() }]).collect();
    lies.extend(names.iter().map(|name| exited(real, Some(name), 1)));
    lies.extend([exited(real, None, u32::MAX), exited(real, None, 0), Event::OutOfMemory { container: real.to_owned() }]);
    lies
}
