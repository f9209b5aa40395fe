// SPDX-License-Identifier: Apache-2.0
//! The containers of a pod, or the execs of a container, by unique name.

use crate::error::{Code, Error, Result};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Things of one kind, by name.
#[derive(Debug)]
pub struct Registry<K, V> {
    kind: &'static str,
    place: String,
    things: Mutex<BTreeMap<K, Arc<V>>>,
}

impl<K: Ord + Clone + Display, V> Registry<K, V> {
    /// An empty registry. Its errors name the `kind` of thing and the `place`.
    pub fn new(kind: &'static str, place: impl Into<String>) -> Self {
        Self { kind, place: place.into(), things: Mutex::default() }
    }

    /// The thing with this name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, name: &K) -> Result<Arc<V>> {
        let missing = || Error::not_found(format!("there is no {} {name} in {}", self.kind, self.place));
        self.lock().get(name).cloned().ok_or_else(missing)
    }

    /// Adds a thing.
    ///
    /// # Errors
    /// `AlreadyExists` for a name in use.
    pub fn add(&self, name: K, thing: Arc<V>) -> Result<()> {
        let mut things = self.lock();
        if things.contains_key(&name) {
            return Err(Error::new(Code::AlreadyExists, format!("{} {name} is in {} already", self.kind, self.place)));
        }
        things.insert(name, thing);
        Ok(())
    }

    /// Removes a thing, if it exists.
    pub fn remove(&self, name: &K) {
        self.lock().remove(name);
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// All current things.
    pub fn all(&self) -> Vec<(K, Arc<V>)> {
        self.lock().iter().map(|(name, thing)| (name.clone(), thing.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, Arc<V>>> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_unique_until_it_is_removed() {
        let registry = Registry::new("exec", "container web");
        registry.add("a", Arc::new(1)).unwrap();
        let twice = registry.add("a", Arc::new(2)).unwrap_err();
        assert_eq!((twice.code(), twice.to_string().as_str()), (Code::AlreadyExists, "exec a is in container web already"));
        assert_eq!(*registry.get(&"a").unwrap(), 1);
        registry.remove(&"a");
        let missing = registry.get(&"a").unwrap_err();
        assert_eq!((missing.code(), missing.to_string().as_str()), (Code::NotFound, "there is no exec a in container web"));
        assert!(registry.all().is_empty());
    }
}
