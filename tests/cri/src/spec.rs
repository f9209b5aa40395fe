// SPDX-License-Identifier: Apache-2.0
//! Builders for the configurations of pods and containers.

mod container;
mod pod;

pub use container::ContainerSpec;
pub use pod::PodSpec;
