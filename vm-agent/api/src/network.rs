// SPDX-License-Identifier: Apache-2.0
//! The guest's network.
use serde::{Deserialize, Serialize};
/// stub
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {}
