// SPDX-License-Identifier: Apache-2.0
//! Which devices a container may use, with cgroup v2.
//!
//! libcontainer 0.7 can do that only with a C library for BPF programs (its feature
//! `cgroupsv2_devices`); without it, whoever has CAP_MKNOD, as containers have by default, could read the host's disks.
//! The program is short, so we write it ourselves. It is attached while init waits for Start.
//!
//! The last rule that has something to say about an access decides, as the specification wants it: one that allows
//! must allow all of the access, one that denies need deny only part of it.

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
use magnetar_sys::device_filter::{self, Instruction};
use rustix::fs::{Mode, OFlags};

/// `BPF_DEVCG_ACC_*` of linux/bpf.h.
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MAKE | READ | WRITE;
/// `BPF_DEVCG_DEV_*`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// What every container may use besides: making any node, and the standard devices, as with runc.
const ALWAYS: [Rule; 11] = [
    Rule { kind: Some(CHARACTER), major: None, minor: None, access: MAKE, allow: true },
    Rule { kind: Some(BLOCK), major: None, minor: None, access: MAKE, allow: true },
    Rule::standard(1, Some(3)), // null
    Rule::standard(1, Some(5)), // zero
    Rule::standard(1, Some(7)), // full
    Rule::standard(1, Some(8)), // random
    Rule::standard(1, Some(9)), // urandom
    Rule::standard(5, Some(0)), // tty
    Rule::standard(5, Some(1)), // console
    Rule::standard(5, Some(2)), // ptmx
    Rule::standard(136, None),  // terminals
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
    allow: bool,
}

/// Confines a container, which waits for Start, to the devices of its specification. With v1 libcontainer has done it.
///
/// # Errors
/// `InvalidArgument` for rules that are none, and what the kernel says: without it no container may run.
pub fn confine(spec: &Spec) -> Result<()> {
    let dir = match cgroup_of(spec)? {
        Some(Cgroup::V2 { dir }) => dir,
        Some(Cgroup::V1 { .. }) => return Ok(()),
        None if matches!(Cgroup::at("/")?, Cgroup::V1 { .. }) => return Ok(()),
        None => {
            return Err(Error::invalid("the specification names no cgroup, without which the container cannot be confined to its devices"));
        }
    };
    let given = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()).and_then(|resources| resources.devices().as_ref());
    let mut rules = given.into_iter().flatten().map(Rule::new).collect::<Result<Vec<_>>>()?;
    rules.extend(ALWAYS);
    let what = || "cannot confine the container to its devices".to_string();
    let cgroup = rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
    device_filter::attach(&program(&rules), &cgroup).context(what)
}

/// The cgroup that the specification names, in which libcontainer has put the container.
pub fn cgroup_of(spec: &Spec) -> Result<Option<Cgroup>> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref()).and_then(|path| path.to_str());
    path.filter(|path| !path.is_empty()).map(Cgroup::at).transpose()
}

impl Rule {
    const fn standard(major: i32, minor: Option<i32>) -> Self {
        Self { kind: Some(CHARACTER), major: Some(major), minor, access: ALL, allow: true }
    }

    fn new(rule: &LinuxDeviceCgroup) -> Result<Self> {
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(BLOCK),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
            LinuxDeviceType::P => return Err(Error::invalid("a device rule about a FIFO")),
        };
        // Negative is the wildcard of old specifications.
        let number = |number: Option<i64>| match number.filter(|number| *number >= 0) {
            None => Ok(None),
            Some(number) => i32::try_from(number).map(Some).map_err(|_| Error::invalid(format!("{number} is no device number"))),
        };
        let letters = rule.access().as_deref().unwrap_or("rwm");
        let access = letters.chars().try_fold(0, |access, letter| match letter {
            'r' => Ok(access | READ),
            'w' => Ok(access | WRITE),
            'm' => Ok(access | MAKE),
            other => Err(Error::invalid(format!("{other:?} is no access to a device"))),
        })?;
        Ok(Self { kind, major: number(rule.major())?, minor: number(rule.minor())?, access, allow: rule.allow() })
    }

    /// Decides, or goes on behind its last instruction.
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

    fn decides_all(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, ALL)
    }
}

/// The kernel gives the address of `struct bpf_cgroup_dev_ctx` in register 1, and takes the answer from register 0.
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

fn program(rules: &[Rule]) -> Vec<Instruction> {
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
            // The verifier does not accept what can never run.
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
mod tests {
    use super::*;

    /// What the kernel would answer.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
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

    fn rules(json: &str) -> Vec<Rule> {
        let given: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        given.iter().map(|rule| Rule::new(rule).unwrap()).collect()
    }

    #[test]
    fn the_default_of_containerd_leaves_the_disks_alone() {
        let mut rules = rules(r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"r"}]"#);
        rules.extend(ALWAYS);
        let program = program(&rules);
        assert!(!run(&program, BLOCK, READ, 254, 0));
        assert!(run(&program, BLOCK, MAKE, 254, 0), "a node alone is harmless");
        assert!(run(&program, CHARACTER, READ | WRITE, 1, 3));
        assert!(!run(&program, CHARACTER, READ, 1, 1), "memory");
        assert!(run(&program, CHARACTER, READ, 10, 229));
        assert!(!run(&program, CHARACTER, READ | WRITE, 10, 229), "more than was allowed");
        assert!(run(&program, CHARACTER, WRITE, 136, 77));
    }

    #[test]
    fn the_last_rule_decides() {
        let text = r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","access":"w"}]"#;
        let program = program(&rules(text));
        assert!(run(&program, BLOCK, READ, 8, 0));
        assert!(!run(&program, BLOCK, READ | WRITE, 8, 0), "part of it is denied");
        assert!(run(&program, CHARACTER, WRITE, 8, 0));
    }

    #[test]
    fn nothing_given_is_nothing_allowed_and_nonsense_is_refused() {
        assert!(!run(&program(&[]), CHARACTER, READ, 1, 3));
        let nonsense: LinuxDeviceCgroup = serde_json::from_str(r#"{"allow":true,"access":"x"}"#).unwrap();
        assert!(Rule::new(&nonsense).is_err());
    }
}
