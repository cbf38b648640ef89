//! The pace at which requests over TCP are answered that show no token.
//!
//! All of them share one: whoever asks without end keeps other strangers waiting, and takes no more of
//! the processor than so many answers cost. They wait in the order they came, and who has gone waits no
//! more. A caller with a token is never among them.

use blixard_core::limits::{HTTP_STRANGERS_AT_ONCE, HTTP_STRANGERS_INTERVAL};
use blixard_core::time::Mono;
use tokio::sync::Mutex;

use crate::platform::Clock;

/// When the next answer were due, had every answer so far taken its interval.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Mono>);

impl Strangers {
    /// Waits until a stranger may be answered. Cancel safe: who goes meanwhile has taken no turn.
    pub(super) async fn turn(&self, clock: &dyn Clock) {
        // Held while waiting: the lock is the queue.
        let mut due = self.0.lock().await;
        let next = clock.now().max(*due);
        clock.sleep_until(next - HTTP_STRANGERS_INTERVAL * HTTP_STRANGERS_AT_ONCE).await;
        *due = next + HTTP_STRANGERS_INTERVAL;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use blixard_core::limits::{HTTP_STRANGERS_AT_ONCE, HTTP_STRANGERS_INTERVAL};
    use blixard_core::time::{Mono, UtcMs};
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    use super::Strangers;
    use crate::platform::Clock;

    /// A clock on which whoever sleeps makes the time pass.
    #[derive(Clone)]
    struct Passing(Arc<Mutex<Mono>>);

    impl Clock for Passing {
        fn now(&self) -> Mono {
            *self.0.lock().expect("nobody panicked")
        }

        fn utc(&self) -> UtcMs {
            UtcMs(0)
        }

        fn sleep_until(&self, deadline: Mono) -> BoxFuture<'static, ()> {
            let clock = Arc::clone(&self.0);
            Box::pin(async move {
                let mut now = clock.lock().expect("nobody panicked");
                *now = deadline.max(*now);
            })
        }
    }

    #[test]
    fn strangers_share_a_pace_and_a_pause_gives_back_no_more_than_some_at_once() {
        let start = Mono(Duration::from_secs(1_000));
        let clock = Passing(Arc::new(Mutex::new(start)));
        let strangers = Strangers::default();
        let take = |count: u32| {
            let before = clock.now();
            (0..count).for_each(|_| strangers.turn(&clock).now_or_never().expect("the clock passes"));
            clock.now().since(before)
        };
        assert_eq!(take(HTTP_STRANGERS_AT_ONCE + 1), Duration::ZERO);
        assert_eq!(take(100), HTTP_STRANGERS_INTERVAL * 100);
        let pause = HTTP_STRANGERS_INTERVAL * HTTP_STRANGERS_AT_ONCE * 10;
        *clock.0.lock().expect("nobody panicked") = clock.now() + pause;
        assert_eq!(take(HTTP_STRANGERS_AT_ONCE + 1), Duration::ZERO);
        assert_eq!(take(1), HTTP_STRANGERS_INTERVAL);
    }
}
