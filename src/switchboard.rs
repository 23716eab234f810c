//! Whom the nodes of a client call without being asked: those who wait for a resource, and those who see to it that nodes
//! count for the strict kinds of locks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::driver::{Doors, Sleepers};
use crate::node::Bell;
use crate::protocol::command::{Key, NodeIndex};
use crate::protocol::enrolment::Reseed;
use crate::protocol::settings::Terms;
use crate::registrar::Registrar;
use crate::sync::lock;

/// Those who can be called.
#[derive(Default)]
pub(crate) struct Switchboard {
    pub(crate) sleepers: Sleepers,
    /// By namespace.
    registrars: Mutex<HashMap<Arc<str>, Arc<Registrar>>>,
}

impl Switchboard {
    /// The registrar of a namespace. The first one who asks brings him to work.
    pub(crate) fn registrar(
        &self,
        doors: &Arc<Doors>,
        namespace: &Arc<str>,
        (terms, reseed): (&Arc<Terms>, Reseed),
    ) -> Arc<Registrar> {
        let mut is_new = false;
        let registrar = lock(&self.registrars)
            .entry(namespace.clone())
            .or_insert_with(|| {
                is_new = true;
                Registrar::new(doors, namespace, (terms, reseed))
            })
            .clone();
        // Not under the lock: a node may answer at once.
        if is_new {
            registrar.begin(doors);
        }
        registrar
    }
}

impl Bell for Switchboard {
    fn ring(&self, node: NodeIndex, key: &Key) -> bool {
        self.sleepers.wake(node, key)
    }

    fn connected(&self, node: NodeIndex) {
        self.sleepers.look_again();
        let registrars: Vec<_> = lock(&self.registrars).values().cloned().collect();
        registrars.iter().for_each(|registrar| registrar.look(node));
    }
}
