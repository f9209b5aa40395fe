// SPDX-License-Identifier: Apache-2.0
//! stub
use magnetar_core::error::Result;
use magnetar_vm_agent_api::network::Network;
pub async fn configure(_network: &Network) -> Result<()> {
    Ok(())
}
