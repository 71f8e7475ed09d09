//! keelblock-perf, a load generator for NVMe/TCP targets, and the project's benchmarks.
