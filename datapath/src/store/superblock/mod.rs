//! Superblock copies (`docs/store-format.md` §2): what a drive is, and the roots of everything on it.
