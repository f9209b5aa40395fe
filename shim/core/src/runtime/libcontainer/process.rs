// SPDX-License-Identifier: Apache-2.0
//! Settings that a process gets before it joins a container, as its first process or as an exec.

use super::report;
use crate::error::{Context, Result};
use crate::stdio::ChildStreams;
use libcontainer::oci_spec::runtime::Spec;
use rustix::fs::{FileType, Gid, Uid};

/// Makes pipes belong to the user of the process in `spec`, who may reopen them through
/// `/dev/stdout`. For a user namespace the caller of the runtime has done it.
pub fn give_to(spec: &Spec, streams: &ChildStreams) -> Result<()> {
    let Some(process) = spec.process() else { return Ok(()) };
    let mapped = spec.linux().as_ref().and_then(|linux| linux.uid_mappings().as_ref()).is_some_and(|mappings| !mappings.is_empty());
    let (uid, gid) = (process.user().uid(), process.user().gid());
    if mapped || (uid, gid) == (0, 0) {
        return Ok(());
    }
    for stream in [&streams.stdin, &streams.stdout, &streams.stderr] {
        let what = || "cannot give a stream to the container's user".to_string();
        let stat = rustix::fs::fstat(stream).context(what)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).context(what)?;
        }
    }
    Ok(())
}

/// Sets `oom_score_adj`. Lowering it needs CAP_SYS_RESOURCE, which a node may lack, so a failure is
/// only noted.
pub fn adjust_oom_score(adjustment: i64) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", adjustment.to_string()) {
        report::note(format!("cannot set oom_score_adj to {adjustment}: {error}"));
    }
}
