//! Waiting for several futures at once, within one task.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

enum Part<F: Future> {
    Running(Pin<Box<F>>),
    Done(Option<F::Output>),
}

/// Runs all of them beside each other; the results are in their order. Each is polled whenever one wakes the task: for tens, not thousands.
pub async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut parts: Vec<Part<F>> = futures.map(|f| Part::Running(Box::pin(f))).collect();
    poll_fn(|cx| {
        let mut all = true;
        for part in &mut parts {
            if let Part::Running(future) = part {
                match future.as_mut().poll(cx) {
                    Poll::Ready(output) => *part = Part::Done(Some(output)),
                    Poll::Pending => all = false,
                }
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let outputs = parts.into_iter().map(|part| match part {
        Part::Done(output) => output.expect("taken once"),
        Part::Running(_) => unreachable!("all are done"),
    });
    outputs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::task::{Context, Waker};

    #[test]
    fn results_are_in_order_whoever_is_first() {
        let turns = Cell::new(0);
        let futures = (0..3).map(|n| {
            let turns = &turns;
            poll_fn(move |_| {
                turns.set(turns.get() + 1);
                // The last one is ready first.
                if turns.get() > 7 - 2 * n {
                    Poll::Ready(n)
                } else {
                    Poll::Pending
                }
            })
        });
        let mut all = Box::pin(join_all(futures));
        let mut cx = Context::from_waker(Waker::noop());
        let mut polls = 1;
        loop {
            if let Poll::Ready(got) = all.as_mut().poll(&mut cx) {
                assert_eq!(got, [0, 1, 2]);
                break;
            }
            polls += 1;
        }
        assert!(polls > 1);
    }
}
