// SPDX-License-Identifier: Apache-2.0
//! What a test asks of a pod and of a container, built step by step.

mod container;
mod pod;

pub use container::ContainerSpec;
pub use pod::PodSpec;
