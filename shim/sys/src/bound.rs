// SPDX-License-Identifier: Apache-2.0
//! Programs that do not outlive whoever runs them, and never gain privileges.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the program that `command` runs be killed by the kernel when the calling thread ends, and be run without ever
/// gaining privileges by executing something (`no_new_privs`), in the cgroup that `entrance` leads to: its `cgroup.procs`, in each
/// hierarchy, open for writing.
///
/// The death signal follows the thread that runs the command: to be called, and spawned, by a thread that lives as long as
/// the process.
pub fn bind(command: &mut Command, entrance: Vec<OwnedFd>) {
    let parent = std::process::id();
    let prepare = move || {
        for procs in &entrance {
            // The kernel asks what the one who has opened the file may do, who was root.
            rustix::io::write(procs, b"0")?;
        }
        // SAFETY: two system calls without pointers, which are safe between fork and exec.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) < 0
                || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as libc::c_ulong, 0, 0, 0) < 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        // It may have died before the first of them.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock: it makes system calls.
    unsafe { command.pre_exec(prepare) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::Stdio;

    #[test]
    fn who_is_bound_dies_with_the_thread_that_ran_it() {
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("sh");
            bind(command.args(["-c", "grep NoNewPrivs /proc/self/status; exec sleep 1000"]).stdout(Stdio::piped()), Vec::new());
            let mut child = command.spawn().unwrap();
            let mut line = [0; 14];
            child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
            assert_eq!(&line, b"NoNewPrivs:\t1\n");
            child
        })
        .join()
        .unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }
}
