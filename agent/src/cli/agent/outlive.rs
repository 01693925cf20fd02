//! An agent that has been succeeded: it carries what it has, and ends when somebody is content with that.

use super::{Failure, Node, signals::Signals};
use miette::miette;
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
///
/// # Errors
/// If nobody has the node any more: whoever starts it again has it taken.
pub(super) async fn outlive(
    node: &impl Node,
    orders: &mut impl Orders,
    mut told: bool,
    supervised: bool,
) -> Result<(), Failure> {
    let mut drained = std::pin::pin!(node.drained());
    let mut forsaken = std::pin::pin!(node.forsaken());
    let mut idle = false;
    loop {
        tokio::select! {
            () = &mut drained, if !idle => {
                if told || !supervised {
                    tracing::info!("nothing is left to carry: the agent that was succeeded ends");
                    return Ok(());
                }
                idle = true;
                tracing::info!("nothing is left to carry: the agent that was succeeded waits until it is told to end");
            }
            signal = orders.next() => {
                if idle {
                    tracing::info!(signal, "the agent that was succeeded ends");
                    return Ok(());
                }
                if std::mem::replace(&mut told, true) {
                    tracing::warn!(signal, "told again: not waiting for connections to end");
                    return Ok(());
                }
            },
            () = &mut forsaken, if idle => {
                return Err(miette!(
                    help = "start it again: it takes the node then",
                    "the agent that succeeded this one is gone, and no other has the node"
                ));
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
    use std::{
        sync::{Arc, atomic::Ordering},
        time::Duration,
    };
    use tokio::{sync::mpsc, task::JoinHandle};

    type Ending = JoinHandle<Result<(), Failure>>;

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
    fn succeeded(carries: bool, supervised: bool) -> (Ending, mpsc::UnboundedSender<&'static str>) {
        succeeded_at(Bench::new(), carries, supervised)
    }

    fn succeeded_at(
        bench: Arc<Bench>,
        carries: bool,
        supervised: bool,
    ) -> (Ending, mpsc::UnboundedSender<&'static str>) {
        let (orders, told) = mpsc::unbounded_channel();
        let mut told = Told(told);
        let node = BenchNode(bench);
        node.0.carries.store(carries, Ordering::SeqCst);
        (tokio::spawn(async move { outlive(&node, &mut told, false, supervised).await }), orders)
    }

    async fn ends(agent: &mut Ending) -> bool {
        let ended = tokio::time::timeout(Duration::from_millis(200), agent).await;
        ended.is_ok_and(|ended| ended.is_ok_and(|ended| ended.is_ok()))
    }

    #[tokio::test]
    async fn one_that_waits_ends_where_nobody_has_the_node_so_that_it_is_started_again() {
        for (carries, supervised, forsaken) in [(false, true, true), (true, true, true), (false, true, false)]
        {
            let bench = Bench::new();
            bench.forsaken.store(forsaken, Ordering::SeqCst);
            let (mut agent, _orders) = succeeded_at(bench, carries, supervised);
            let ended = tokio::time::timeout(Duration::from_millis(200), &mut agent).await;
            // What it carries goes on.
            assert_eq!(ended.is_ok(), forsaken && !carries, "{carries} {supervised} {forsaken}");
            assert!(ended.is_err() || matches!(ended, Ok(Ok(Err(_)))), "told as a failure");
        }
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
