//! stub
use magnetar_core::error::Result;
use magnetar_vm_agent_api::network::Network;
pub struct Attached { pub network: Network, pub nics: Vec<crate::spec::Nic> }
pub async fn attach() -> Result<Attached> { Ok(Attached{network: Network::default(), nics: Vec::new()}) }
pub async fn detach() -> Result<()> { Ok(()) }
