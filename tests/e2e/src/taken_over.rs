// SPDX-License-Identifier: Apache-2.0
//! A process that an attacker has taken over: it makes the system calls that a test wants, with
//! what it has and may do itself.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    libc::{c_long, user_regs_struct},
    sys::{
        ptrace,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Below this many bytes under a stack's end nothing of the process's own is.
const ROOM: u64 = 64 << 10;

/// `syscall` on x86_64.
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// A process whose main thread is stopped, for as long as this value lives. The thread that has
/// made it must make the calls.
pub struct TakenOver {
    thread: Pid,
    registers: user_regs_struct,
    memory: File,
    instruction: u64,
    free: u64,
}

impl TakenOver {
    /// Takes a process over that runs or waits for something.
    ///
    /// # Errors
    /// Where it cannot be traced.
    pub fn begin(pid: i32) -> Result<Self> {
        let thread = Pid::from_raw(pid);
        ptrace::seize(thread, ptrace::Options::empty()).context("cannot trace it")?;
        ptrace::interrupt(thread)?;
        stopped(thread)?;
        let registers = ptrace::getregs(thread)?;
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        let instruction = instruction(pid, &memory)?;
        Ok(Self { thread, registers, memory, instruction, free: registers.rsp - ROOM })
    }

    /// Puts bytes into its memory, for as long as it is taken over, and returns their address.
    ///
    /// # Errors
    /// Where its stack is too small.
    pub fn put(&mut self, bytes: &[u8]) -> Result<u64> {
        self.free -= (bytes.len() as u64).next_multiple_of(16);
        self.memory.write_all_at(bytes, self.free)?;
        Ok(self.free)
    }

    /// The same for a path or another text, which ends with a zero.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn text(&mut self, text: &str) -> Result<u64> {
        self.put(&[text.as_bytes(), &[0]].concat())
    }

    /// Has it make a system call. The outer error is the test's, the inner one what the kernel
    /// answers.
    ///
    /// # Errors
    /// Where it dies of the call.
    pub fn call(&self, number: c_long, arguments: [u64; 6]) -> Result<Result<i64, Errno>> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let registers = user_regs_struct {
            rip: self.instruction,
            rax: number as u64,
            // Not in a system call: there is none to be restarted.
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.registers
        };
        ptrace::setregs(self.thread, registers)?;
        ptrace::step(self.thread, None)?;
        stopped(self.thread).with_context(|| format!("system call {number}"))?;
        let answer = ptrace::getregs(self.thread)?.rax as i64;
        Ok(if (-4095..0).contains(&answer) { Err(Errno::from_raw(-answer as i32)) } else { Ok(answer) })
    }
}

impl Drop for TakenOver {
    fn drop(&mut self) {
        // It may have ended, of one of the calls for instance.
        let _ended = ptrace::setregs(self.thread, self.registers).and_then(|()| ptrace::detach(self.thread, None));
    }
}

fn stopped(thread: Pid) -> Result<()> {
    let status = waitpid(thread, Some(WaitPidFlag::__WALL))?;
    ensure!(matches!(status, WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..)), "it has not stopped: {status:?}");
    Ok(())
}

/// Where a system call's instruction is in its memory: in what the kernel maps into each process.
fn instruction(pid: i32, memory: &File) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let range = maps.lines().find(|line| line.ends_with("[vdso]")).and_then(|line| line.split_once(' ')?.0.split_once('-'));
    let (begin, end) = range.context("it has no vdso")?;
    let (begin, end) = (u64::from_str_radix(begin, 16)?, u64::from_str_radix(end, 16)?);
    let mut code = vec![0; (end - begin) as usize];
    memory.read_exact_at(&mut code, begin)?;
    let at = code.windows(2).position(|bytes| bytes == INSTRUCTION).ok_or_else(|| io::Error::other("no system call in the vdso"))?;
    Ok(begin + at as u64)
}
