//! stub
use magnetar_core::error::Result;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
pub fn start<D>(_t: &TaskTracker, _c: CancellationToken, _d: D) -> Result<()> { Ok(()) }
