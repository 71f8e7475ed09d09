//! The map (`docs/store-format.md` §6 and 7): pages of a lane's radix tree, and the catalogue of lanes and snapshots.
