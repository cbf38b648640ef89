//! `nobody_is_accused`: no member's state is found to differ where none was damaged.
//!
//! Members compare digests of their states (docs/adr/0014), and one that differs answers nobody. Shows a
//! digest that is made of something else than what all have: another place in the log, a history that was
//! replaced, an encoding that depends on how a state came about.

use std::collections::BTreeSet;

use crate::machine::Running;

/// Checks what the running nodes say while the states of the machines `wrong` are damaged.
pub(super) fn check(running: &[Running], wrong: &BTreeSet<u64>) -> Result<(), String> {
    if !wrong.is_empty() {
        return Ok(());
    }
    for node in running {
        if let Some(why) = node.handle.differs() {
            return Err(format!("machine {}: {why}", node.machine));
        }
        for id in node.handle.state().nodes.keys() {
            if let Some(difference) = node.handle.difference_of(*id) {
                return Err(format!("machine {} says: {}", node.machine, difference.words(*id)));
            }
        }
    }
    Ok(())
}
