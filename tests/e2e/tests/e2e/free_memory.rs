// SPDX-License-Identifier: Apache-2.0
//! Memory that a guest frees goes back to the host.

use anyhow::{Result, ensure};
use magnetar_cri::{Pod, v1::PodSandboxState};
use magnetar_e2e::{Case, eventually, on_vm};

use crate::vm::hypervisor;

/// What a program of the guest holds for a while, in MiB.
const HELD: u64 = 300;

/// The memory of the pod's hypervisor, its guest's included, in MiB.
fn taken(case: &Case, pod: &Pod) -> Result<u64> {
    Ok(hypervisor(case, pod)?.memory().own >> 20)
}

#[test]
fn what_a_container_has_used_goes_back_to_the_host_when_it_ends() {
    on_vm(async |case| {
        // Without a limit: a guest of 1 GiB.
        let pod = case.pod("frees").await?;
        let before = taken(case, &pod)?;
        // Nobody reads what dd has in its buffer.
        let holder = pod.run(&case.script(&format!("dd if=/dev/zero bs={HELD}M count=1 | sleep 100000")).named("holder")).await?;
        eventually("the guest has taken memory", case.soon(), async || Ok((taken(case, &pod)? >= before + HELD).then_some(()))).await?;
        holder.remove().await?;
        // The guest begins to report ten seconds after its boot.
        eventually("the memory is back", case.within(60), async || Ok((taken(case, &pod)? < before + HELD / 2).then_some(()))).await?;
        ensure!(pod.state().await? == PodSandboxState::SandboxReady, "the pod has ended");
        Ok(pod.remove().await?)
    });
}
