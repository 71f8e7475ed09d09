//! The replica's state under random events, and its service on the simulated reactor.
mod life;
mod promises;
mod random;
mod rig;
mod state;
