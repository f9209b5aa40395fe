// SPDX-License-Identifier: Apache-2.0
//! Templates: guests that were booted once, and saved when their agent waited for a pod. Further
//! pods of the same kind begin as copies of them.
//!
//! ```text
//! a pod is started   recipe: what its machine is made of ──> store: is there a template?
//!                    yes: its memory is copied (copy), and the hypervisor loads the rest
//!                    no:  it boots, and when it runs, the template is made beside it (maker)
//! ```
//!
//! A template has no secret, no address, no vsock and an empty share. What a pod has of its own,
//! its guest gets after the restore. All pods of a template have its kernel's and its agent's
//! memory layout in common.
//!
//! A template is a shortcut and nothing else: whatever is wrong with one, the pod boots.

pub mod copy;
pub mod maker;
pub mod recipe;
pub mod store;
