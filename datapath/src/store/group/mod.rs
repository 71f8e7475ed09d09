//! Space of a drive (`docs/store-format.md` §3): groups, their bitmaps, and when a freed block may be used again.
