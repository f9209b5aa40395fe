// SPDX-License-Identifier: Apache-2.0
//! A language model's file and metadata: whatever they are, they are understood or refused.
#![no_main]

// magnetar-wasm is not compiled for this: these two parts of it need none of the rest.
#[path = "../../../wasm/src/nn/gguf.rs"]
mod gguf;
#[path = "../../../wasm/src/nn/metadata.rs"]
mod metadata;

use gguf::Shape;
use metadata::Metadata;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(shape) = Shape::read(bytes) {
        for asked in [None, Some(1), Some(u32::MAX)] {
            let _known = shape.needs(shape.context(asked), asked);
        }
    }
    let mut metadata = Metadata::default();
    if metadata.add(bytes).is_ok() {
        let options = serde_json::to_vec(&metadata.load).expect("the pod's process is told");
        assert_eq!(serde_json::from_slice::<metadata::LoadOptions>(&options).expect("it understands"), metadata.load);
        let mut again = metadata.clone();
        again.add(bytes).expect("it was understood before");
        assert_eq!(again, metadata, "the same metadata once more changes nothing");
    }
});
