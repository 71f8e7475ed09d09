//! Protocol contracts, generated types and the shared-memory channel.
