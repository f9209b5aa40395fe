// SPDX-License-Identifier: Apache-2.0
//! The rules, by what they check.

pub mod comments;
pub mod imports;
pub mod manifest;
pub mod source;
pub mod text;
