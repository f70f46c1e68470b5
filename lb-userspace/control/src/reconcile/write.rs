//! Carries plans out.

use crate::model::{Frontend, ServiceKey};
use crate::plan::Plan;
use crate::store::{Op, Store, StoreError};

/// Slots written at a time; bounds the memory a large change takes.
const RING_BATCH: usize = 1 << 20;
/// New frontends written at a time.
const INSERT_BATCH: usize = 256;

/// Applies all of a plan but its new frontends.
pub(super) fn apply(store: &mut dyn Store, plan: &Plan) -> Result<(), StoreError> {
    store.apply(&plan.prepare)?;
    let mut batch = Vec::new();
    let mut slots = 0;
    for ring in &plan.rings {
        batch.push(Op::WriteRing(ring.ring, ring.slots()));
        slots += ring.ring.length as usize;
        if slots >= RING_BATCH {
            store.apply(&batch)?;
            batch.clear();
            slots = 0;
        }
    }
    store.apply(&batch)?;
    store.apply(&plan.switch)
}

/// Frontends that are not there, and their Services; an address of the node has none.
pub(super) type Refused = Vec<(Frontend, Option<ServiceKey>)>;

/// Puts the new frontends of a plan. Returns those that may not be there, and why.
pub(super) fn insert(store: &mut dyn Store, plan: &Plan) -> (Refused, Result<(), StoreError>) {
    let refusal = |entries: &[(Frontend, _, Option<ServiceKey>)]| -> Refused {
        entries.iter().map(|(frontend, _, service)| (*frontend, service.clone())).collect()
    };
    for (i, chunk) in plan.insert.chunks(INSERT_BATCH).enumerate() {
        let entries: Vec<_> = chunk.iter().map(|(frontend, value, _)| (*frontend, *value)).collect();
        let Err(error) = store.apply(&[Op::PutServices(entries.clone())]) else { continue };
        // Part of the batch may be in. One by one all that fit get in.
        for (j, entry) in entries.into_iter().enumerate() {
            if let Err(error) = store.apply(&[Op::PutServices(vec![entry])]) {
                return (refusal(&plan.insert[i * INSERT_BATCH + j..]), Err(error));
            }
        }
        tracing::debug!(%error, "new frontends written one by one");
    }
    (Vec::new(), Ok(()))
}
