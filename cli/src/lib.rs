//! `keelctl`, the command line of a cluster, and `keelblock`, which runs a whole cluster on this machine.
//!
//! Both are clients of a node's control process: [`client`] is the connection, [`failure`] what can go wrong and how it is
//! told, [`render`] how answers are shown. [`keelctl`] holds one module per group of commands; [`up`] starts, supervises and
//! watches the processes of a node.
pub mod client;
pub mod failure;
pub mod keelctl;
pub mod rates;
pub mod render;
pub mod size;
pub mod time;
pub mod up;
