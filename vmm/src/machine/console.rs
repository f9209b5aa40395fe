// SPDX-License-Identifier: Apache-2.0
//! Why a guest has ended, as its console says.

use magnetar_vm_agent_api::GIVES_UP;

/// The reason of a kernel panic on the console, if there is one.
pub fn panic_in(console: &str) -> Option<&str> {
    let (_, said) = console.rsplit_once("Kernel panic - not syncing: ")?;
    said.lines().next().map(str::trim).filter(|reason| !reason.is_empty())
}

/// The agent's reason for ending the guest, if the console has one.
pub fn agent_error_in(console: &str) -> Option<&str> {
    let (_, said) = console.rsplit_once(GIVES_UP)?;
    said.lines().next()?.trim().strip_prefix("error=").filter(|reason| !reason.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use magnetar_core::confined::log_tail::LogTail;
    use proptest::prelude::*;

    #[test]
    fn a_panic_is_found_in_the_console() {
        let console =
            "[    1.0] Run /init\n[    2.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n[    2.1] CPU: 0";
        assert_eq!(panic_in(console), Some("Attempted to kill init! exitcode=0x00000100"));
        assert_eq!(panic_in("all is well"), None);
    }

    #[test]
    fn the_agents_reason_is_found_in_the_console() {
        let console =
            format!("[    1.0] Run /init\n2026-11-25T18:16:04Z ERROR {GIVES_UP} error=cannot mount /x: EIO\n[    2.1] reboot: Power down");
        assert_eq!(agent_error_in(&console), Some("cannot mount /x: EIO"));
        assert_eq!(agent_error_in("[    2.1] reboot: Power down"), None);
        assert_eq!(agent_error_in(GIVES_UP), None);
    }

    proptest! {
        #[test]
        fn a_panic_is_found_whatever_came_before(said in proptest::collection::vec(any::<u8>(), 0..9000), panic in "[ -~]{0,30}") {
            let tail = LogTail::default();
            tail.push(&said);
            tail.push(format!("\n[ 1.0] Kernel panic - not syncing: {panic}\r\n").as_bytes());
            let (console, reason) = (tail.last(), panic.trim());
            prop_assert_eq!(panic_in(&console), Some(reason).filter(|reason| !reason.is_empty()));
        }
    }
}
