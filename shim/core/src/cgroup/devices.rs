// SPDX-License-Identifier: Apache-2.0
//! Limits which devices the processes of a cgroup may use: by the devices controller in version 1,
//! by a BPF program in version 2.
//!
//! The last matching rule decides about an access, as the runtime specification requires
//! (config-linux.md, "Allowed Device list"). A rule that allows matches if it covers the whole
//! access; a rule that denies matches if it covers part of it.

use super::Cgroup;
use crate::error::{Context, Result};
use magnetar_sys::device_filter::{self, Instruction};
use rustix::fs::{Mode, OFlags};
use std::fs;
use tracing::debug;

/// Making a node: `BPF_DEVCG_ACC_MKNOD` of linux/bpf.h.
pub const MAKE: i32 = 1;
/// Reading: `BPF_DEVCG_ACC_READ`.
pub const READ: i32 = 2;
/// Writing: `BPF_DEVCG_ACC_WRITE`.
pub const WRITE: i32 = 4;
/// All accesses.
pub const ALL: i32 = MAKE | READ | WRITE;
/// A block device: `BPF_DEVCG_DEV_BLOCK`.
pub const BLOCK: i32 = 1;
/// A character device: `BPF_DEVCG_DEV_CHAR`.
pub const CHARACTER: i32 = 2;

/// A rule about devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The kind of devices; both kinds if `None`.
    pub kind: Option<i32>,
    /// The major number; any if `None`.
    pub major: Option<i32>,
    /// The minor number; any if `None`.
    pub minor: Option<i32>,
    /// The accesses: a sum of [`MAKE`], [`READ`] and [`WRITE`].
    pub access: i32,
    /// Whether they are allowed, or denied.
    pub allow: bool,
}

impl Rule {
    /// Allows a character device.
    pub const fn character(major: i32, minor: Option<i32>) -> Self {
        Self { kind: Some(CHARACTER), major: Some(major), minor, access: ALL, allow: true }
    }

    /// Allows making any node. A node of a device that may not be used is harmless.
    pub const fn any_node(kind: i32) -> Self {
        Self { kind: Some(kind), major: None, minor: None, access: MAKE, allow: true }
    }

    /// Instructions that decide, or continue after the last of them if the rule does not match.
    fn instructions(&self) -> Vec<Instruction> {
        let mut code = Vec::new();
        if let Some(kind) = self.kind {
            code.push(jump_unless_equal(DEVICE, kind));
        }
        if self.access != ALL {
            code.push(copy(SCRATCH, ACCESS));
            if self.allow {
                code.push(and(SCRATCH, ALL & !self.access));
                code.push(jump_unless_equal(SCRATCH, 0));
            } else {
                code.push(and(SCRATCH, self.access));
                code.push(jump_if_equal(SCRATCH, 0));
            }
        }
        code.extend(self.major.map(|major| jump_unless_equal(MAJOR, major)));
        code.extend(self.minor.map(|minor| jump_unless_equal(MINOR, minor)));
        code.extend(decide(self.allow));
        let length = code.len();
        for (index, instruction) in code.iter_mut().enumerate() {
            if matches!(instruction.code, JNE | JEQ) {
                instruction.offset = (length - index - 1) as i16;
            }
        }
        code
    }

    /// The rule in the form of version 1's controller (the kernel's cgroup-v1/devices.rst).
    fn line(&self) -> String {
        let kind = match self.kind {
            Some(BLOCK) => 'b',
            Some(_) => 'c',
            None => 'a',
        };
        let number = |number: Option<i32>| number.map_or_else(|| "*".into(), |number| number.to_string());
        let letters: String =
            [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')].iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| letter).collect();
        format!("{kind} {}:{} {letters}", number(self.major), number(self.minor))
    }

    fn decides_all(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, ALL)
    }
}

/// Limits the processes of a cgroup, and of the cgroups below it, to the devices that `rules`
/// allow.
///
/// # Errors
/// The kernel's error. Then no process may run in the cgroup.
pub fn confine(cgroup: &Cgroup, rules: &[Rule]) -> Result<()> {
    let what = || "cannot confine a cgroup to its devices".to_string();
    match cgroup {
        Cgroup::V2 { dir } => {
            let dir = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
            device_filter::attach(&program(rules), &dir).context(what)
        }
        Cgroup::V1 { .. } => {
            // A node without this hierarchy does not confine devices at all.
            let Some(dir) = cgroup.controller_dir("devices") else { return Ok(()) };
            fs::write(dir.join("devices.deny"), "a").context(what)?;
            for rule in rules {
                let file = if rule.allow { "devices.allow" } else { "devices.deny" };
                match fs::write(dir.join(file), rule.line()) {
                    // The node itself may not use the device.
                    Err(error) if rule.allow && error.kind() == std::io::ErrorKind::PermissionDenied => {
                        debug!(rule = rule.line(), "skipped a rule for a device that the node may not use");
                    }
                    written => written.context(what)?,
                }
            }
            Ok(())
        }
    }
}

/// The kernel passes the address of `struct bpf_cgroup_dev_ctx` in register 1, and reads the answer
/// from register 0.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const DEVICE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// Operations (linux/bpf_common.h, linux/bpf.h).
const LOAD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const COPY: u8 = 0xbc;
const JNE: u8 = 0x55;
const JEQ: u8 = 0x15;
const SET: u8 = 0xb7;
const EXIT: u8 = 0x95;

/// The program that decides by these rules. Without rules it allows nothing.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let load = |register: u8, offset| Instruction { code: LOAD, registers: register | CONTEXT << 4, offset, immediate: 0 };
    let mut code = vec![
        load(DEVICE, 0),
        and(DEVICE, 0xffff),
        load(ACCESS, 0),
        Instruction { code: SHIFT_RIGHT, registers: ACCESS, offset: 0, immediate: 16 },
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        code.extend(rule.instructions());
        if rule.decides_all() {
            // The verifier rejects unreachable instructions.
            return code;
        }
    }
    code.extend(decide(false));
    code
}

fn decide(allow: bool) -> [Instruction; 2] {
    let set = Instruction { code: SET, registers: ANSWER, offset: 0, immediate: allow.into() };
    [set, Instruction { code: EXIT, registers: 0, offset: 0, immediate: 0 }]
}

fn and(register: u8, immediate: i32) -> Instruction {
    Instruction { code: AND, registers: register, offset: 0, immediate }
}

fn copy(to: u8, from: u8) -> Instruction {
    Instruction { code: COPY, registers: to | from << 4, offset: 0, immediate: 0 }
}

fn jump_unless_equal(register: u8, immediate: i32) -> Instruction {
    Instruction { code: JNE, registers: register, offset: 0, immediate }
}

fn jump_if_equal(register: u8, immediate: i32) -> Instruction {
    Instruction { code: JEQ, registers: register, offset: 0, immediate }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    pub fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0i32; 7];
        let mut at = 0;
        loop {
            let Instruction { code, registers: both, offset, immediate } = program[at];
            let (to, from) = ((both & 15) as usize, (both >> 4) as usize);
            at += 1;
            match code {
                LOAD => registers[to] = context[offset as usize / 4],
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] >>= immediate,
                COPY => registers[to] = registers[from],
                SET => registers[to] = immediate,
                JNE if registers[to] != immediate => at += offset as usize,
                JEQ if registers[to] == immediate => at += offset as usize,
                JNE | JEQ => {}
                EXIT => return registers[0] == 1,
                other => panic!("unknown operation {other}"),
            }
        }
    }

    #[test]
    fn the_last_rule_decides() {
        let all = Rule { kind: None, major: None, minor: None, access: ALL, allow: true };
        let program = program(&[all, Rule { kind: Some(BLOCK), access: WRITE, allow: false, ..all }]);
        assert!(run(&program, BLOCK, READ, 8, 0));
        assert!(!run(&program, BLOCK, READ | WRITE, 8, 0), "part of it is denied");
        assert!(run(&program, CHARACTER, WRITE, 8, 0));
    }

    #[test]
    fn without_rules_nothing_is_allowed() {
        assert!(!run(&program(&[]), CHARACTER, READ, 1, 3));
    }

    #[test]
    fn rules_are_formatted_for_version_1() {
        assert_eq!(Rule::character(10, Some(232)).line(), "c 10:232 rwm");
        assert_eq!(Rule::any_node(BLOCK).line(), "b *:* m");
        assert_eq!(Rule { kind: None, major: None, minor: None, access: READ | WRITE, allow: false }.line(), "a *:* rw");
    }
}
