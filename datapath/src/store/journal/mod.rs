//! The journal (`docs/store-format.md` §4): blocks and records as bytes, packing them, and finding them again.
