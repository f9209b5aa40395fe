// SPDX-License-Identifier: Apache-2.0
//! A command on a terminal of its own, as a person runs it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::{Child, Command},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::pty::{Winsize, openpty};

/// A command that runs on a terminal.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    said: String,
}

impl Terminal {
    /// The lines that every terminal here has.
    pub const ROWS: u16 = 33;
    /// Its columns.
    pub const COLUMNS: u16 = 77;

    /// Starts a command. All three of its streams are the terminal.
    pub fn run(mut command: Command) -> Result<Self> {
        let size = Winsize { ws_row: Self::ROWS, ws_col: Self::COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).context("cannot make a terminal")?;
        let slave = pair.slave;
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        // The command holds the terminal as well, and reading would never end.
        drop(command);
        let keyboard = File::from(pair.master);
        let mut output = keyboard.try_clone()?;
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading fails as soon as nobody has the other side open any more.
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, keyboard, screen, said: String::new() })
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        Ok(self.keyboard.write_all(format!("{line}\n").as_bytes())?)
    }

    /// Waits until `word` is on the screen.
    pub fn shows(&mut self, word: &str, within: Duration) -> Result<()> {
        let end = Instant::now() + within;
        while !self.said.contains(word) {
            match self.screen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.said.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => bail!("not within {within:?}: {word:?} on the terminal, which shows {:?}", self.said),
                Err(RecvTimeoutError::Disconnected) => bail!("ended without {word:?} on the terminal, which shows {:?}", self.said),
            }
        }
        Ok(())
    }

    /// Waits for the command's end: its exit code, and all that it has said.
    pub fn ends(mut self, within: Duration) -> Result<(Option<i32>, String)> {
        let end = Instant::now() + within;
        loop {
            match self.screen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.said.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => bail!("not ended within {within:?}; the terminal shows {:?}", self.said),
            }
        }
        Ok((self.child.wait()?.code(), std::mem::take(&mut self.said)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Also when a test fails: the command must not outlive it. One that has ended cannot be
        // killed, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
