// SPDX-License-Identifier: Apache-2.0
//! Sends requests to the kernel's network, in the network namespace of the calling thread.

use crate::error::{Context, Error, Result};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use std::pin::pin;
use tokio_stream::{Stream, StreamExt};

/// A netlink result, before context is added.
pub type Answer<T> = std::result::Result<T, rtnetlink::Error>;

/// Does `work` with a connection to the kernel, which is closed afterwards. Cancel-safe if `work`
/// is.
///
/// # Errors
/// Those of `work`, or that the connection failed.
pub async fn with<T, F: Future<Output = Result<T>>>(work: impl FnOnce(Handle) -> F) -> Result<T> {
    let (connection, handle, _news) = rtnetlink::new_connection().context(|| "cannot open a netlink connection to the kernel".into())?;
    // Keep one handle here. The connection ends with the last one, and a request that waits for an
    // answer takes that end for a success.
    let mut work = pin!(work(handle.clone()));
    tokio::select! {
        biased;
        done = &mut work => done,
        () = connection => Err(Error::internal("the netlink connection to the kernel has ended")),
    }
}

/// Collects all entries of a dump. Cancel-safe.
///
/// # Errors
/// The kernel's error.
pub async fn all<T>(dump: impl Stream<Item = Answer<T>>) -> Answer<Vec<T>> {
    dump.collect().await
}

/// Sends a request with flags that rtnetlink's own functions do not offer. Not cancel-safe.
///
/// # Errors
/// The kernel's error.
pub async fn request(handle: &Handle, message: RouteNetlinkMessage, flags: u16) -> Answer<()> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut answers = pin!(handle.clone().request(message)?);
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// The kernel's error number; `None` if the error is not the kernel's.
pub fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Errno::from_io_error(&message.to_io()),
        _ => None,
    }
}

impl<T> Context<T> for Answer<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.or_else(|error| match error {
            rtnetlink::Error::NetlinkError(message) => Err(message.to_io()).context(what),
            error => Err(Error::internal(format!("{}: {error}", what()))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use rtnetlink::packet_route::link::LinkAttribute;

    #[tokio::test]
    async fn the_kernel_lists_its_interfaces() {
        let links =
            with(async |handle| all(handle.link().get().execute()).await.context(|| "cannot list interfaces".into())).await.unwrap();
        let name = LinkAttribute::IfName("lo".into());
        assert!(links.iter().any(|link| link.attributes.contains(&name)), "{links:?}");
    }

    #[tokio::test]
    async fn a_refused_request_returns_the_kernel_s_error() {
        let nothing = |handle: Handle| async move {
            let refused = handle.link().del(u32::MAX >> 1).execute().await;
            assert_eq!(errno(refused.as_ref().unwrap_err()), Some(Errno::NODEV));
            refused.context(|| "cannot remove it".into())
        };
        let error = with(nothing).await.unwrap_err();
        assert_eq!((error.code(), error.to_string().as_str()), (Code::Internal, "cannot remove it: No such device (os error 19)"));
    }
}
