//! Panics of simulated tasks, which tokio catches: they must not go unseen.

use std::cell::RefCell;
use std::sync::Once;

use blixard_node::raft::inspect;

thread_local! {
    static FIRST: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// The panics of this thread from now on.
pub(crate) struct Panics(());

/// Watches this thread, on which a world runs.
pub(crate) fn watch() -> Panics {
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            // What redb makes of a damaged file is an error to the node.
            if inspect::is_guarded() {
                return;
            }
            FIRST.with_borrow_mut(|first| {
                first.get_or_insert_with(|| info.to_string());
            });
        }));
    });
    FIRST.take();
    Panics(())
}

impl Panics {
    /// The first panic's words.
    pub(crate) fn taken(self) -> Option<String> {
        FIRST.take()
    }
}
