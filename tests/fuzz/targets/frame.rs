// SPDX-License-Identifier: Apache-2.0
//! Messages between host and guest: whatever arrives is a message of the kind that is expected, or
//! an error.
#![no_main]

use magnetar_vm_agent_api::frame::{FROM_ANYONE, FROM_GUEST, FROM_HOST, read, write};
use magnetar_vm_agent_api::{Answer, Event, Opened, Opening, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use tokio::runtime::Builder;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(runtime) = Builder::new_current_thread().build() else { return };
    runtime.block_on(async {
        check::<Opened>(bytes, FROM_GUEST).await;
        check::<Answer>(bytes, FROM_GUEST).await;
        check::<Event>(bytes, FROM_GUEST).await;
        check::<Opening>(bytes, FROM_ANYONE).await;
        check::<Request>(bytes, FROM_HOST).await;
    });
});

/// A message that was understood is the same when it is sent and received again, and no more was
/// read than belongs to it.
async fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8], longest: usize) {
    let mut rest = bytes;
    let Ok(message) = read::<T>(&mut rest, longest).await else { return };
    let length = bytes.len() - rest.len() - 4;
    assert!(length <= longest && bytes[..4] == (length as u32).to_be_bytes());
    let mut again = Vec::new();
    write(&mut again, &message).await.expect("it cannot be sent");
    assert_eq!(read::<T>(&mut again.as_slice(), usize::MAX).await.expect("it is not understood"), message);
}
