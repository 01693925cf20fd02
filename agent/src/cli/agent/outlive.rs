//! An agent that has been succeeded: it carries what it has, and ends when somebody is content with that.

use super::{Node, signals::Signals};
use std::future::Future;

/// What tells an agent to end.
pub(super) trait Orders: Send {
    /// The next order's name.
    fn next(&mut self) -> impl Future<Output = &'static str> + Send;
}

impl Orders for Signals {
    fn next(&mut self) -> impl Future<Output = &'static str> + Send {
        Self::next(self)
    }
}

/// Waits until nothing is left to carry, or until the agent is told a second time to end: the first order comes as soon
/// as the successor is ready, and the connections may go on.
///
/// One that is `supervised` waits for the first order in any case. Whoever keeps a supervisor running starts it again when
/// it ends untold, and this build would take the node back from its successor.
pub(super) async fn outlive(node: &impl Node, orders: &mut impl Orders, mut told: bool, supervised: bool) {
    let mut drained = std::pin::pin!(node.drained());
    let mut idle = false;
    loop {
        tokio::select! {
            () = &mut drained, if !idle => {
                if told || !supervised {
                    return tracing::info!("nothing is left to carry: the agent that was succeeded ends");
                }
                idle = true;
                tracing::info!("nothing is left to carry: the agent that was succeeded waits until it is told to end");
            }
            signal = orders.next() => {
                if idle {
                    return tracing::info!(signal, "the agent that was succeeded ends");
                }
                if std::mem::replace(&mut told, true) {
                    return tracing::warn!(signal, "told again: not waiting for connections to end");
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{Bench, BenchNode},
        *,
    };
    use std::{sync::atomic::Ordering, time::Duration};
    use tokio::{sync::mpsc, task::JoinHandle};

    struct Told(mpsc::UnboundedReceiver<&'static str>);

    impl Orders for Told {
        async fn next(&mut self) -> &'static str {
            match self.0.recv().await {
                Some(order) => order,
                None => std::future::pending().await,
            }
        }
    }

    /// An agent that has been succeeded and carries something or not, and what tells it to end.
    fn succeeded(carries: bool, supervised: bool) -> (JoinHandle<()>, mpsc::UnboundedSender<&'static str>) {
        let (orders, told) = mpsc::unbounded_channel();
        let mut told = Told(told);
        let node = BenchNode(Bench::new());
        node.0.carries.store(carries, Ordering::SeqCst);
        (tokio::spawn(async move { outlive(&node, &mut told, false, supervised).await }), orders)
    }

    async fn ends(agent: &mut JoinHandle<()>) -> bool {
        tokio::time::timeout(Duration::from_millis(200), agent).await.is_ok_and(|ended| ended.is_ok())
    }

    #[tokio::test]
    async fn one_that_nobody_starts_again_ends_by_itself() {
        let (mut agent, _orders) = succeeded(false, false);
        assert!(ends(&mut agent).await);
    }

    #[tokio::test]
    async fn one_that_is_supervised_waits_to_be_told_and_ends_then() {
        let (mut agent, orders) = succeeded(false, true);
        assert!(!ends(&mut agent).await, "it would be started again");
        orders.send("SIGTERM").unwrap();
        assert!(ends(&mut agent).await);
    }

    #[tokio::test]
    async fn connections_go_on_when_it_is_told_once_and_not_when_it_is_told_twice() {
        for supervised in [false, true] {
            let (mut agent, orders) = succeeded(true, supervised);
            orders.send("SIGTERM").unwrap();
            assert!(!ends(&mut agent).await, "{supervised}");
            orders.send("SIGTERM").unwrap();
            assert!(ends(&mut agent).await, "{supervised}");
        }
    }
}
