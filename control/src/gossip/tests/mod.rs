//! Gossip over a simulated network, by a clock of numbers; and over whatever bytes.

mod fuzz;
mod net;
mod simulated;
