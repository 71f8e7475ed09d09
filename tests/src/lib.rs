//! Whole-system tests: a cluster builder, faults, real Linux hosts.
