//! Raw operating-system interfaces behind safe, documented functions: what `rustix` and the `io-uring` crate lack.

pub mod block;
pub mod clock;
pub mod thread;
