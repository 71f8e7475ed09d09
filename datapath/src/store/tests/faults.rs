//! A bit rots, a write lands elsewhere, a block cannot be read: an error or the right bytes, never others, and other blocks are untouched.
