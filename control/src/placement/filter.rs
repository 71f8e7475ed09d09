//! Who cannot have a replica, and why (`docs/placement.md` §2).
use super::bound::Bound;
use super::choose::Request;
use super::{Limits, Node, Pool, Score};
use std::fmt;

/// Why a node cannot have a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It may have none: in words.
    Node(String),
    /// It has one.
    HasOne,
    /// Others were named.
    NotNamed,
    /// None of its pools was named.
    PoolNotNamed,
    /// It has no pool.
    NoPool,
    /// Its pools are memory.
    Memory,
    /// They are full.
    Full,
    /// No more is free in any than is reserved.
    Reserved {
        /// Free bytes of the one with most.
        free_bytes: u64,
        /// What is reserved there.
        reserved_bytes: u64,
    },
    /// More would be provisioned than may be.
    Overcommitted {
        /// With this volume.
        would_be_bytes: u64,
        /// What may be.
        limit_bytes: u64,
    },
    /// A required rule forbids it.
    Rule(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(why) => f.write_str(why),
            Self::HasOne => f.write_str("it has one"),
            Self::NotNamed => f.write_str("other nodes were named"),
            Self::PoolNotNamed => f.write_str("other pools were named"),
            Self::NoPool => f.write_str("it has no pool"),
            Self::Memory => f.write_str("its pool is memory, and replicas want drives"),
            Self::Full => f.write_str("its pool is full"),
            Self::Reserved {
                free_bytes,
                reserved_bytes,
            } => write!(
                f,
                "its pool has {free_bytes} bytes free, and {reserved_bytes} are reserved"
            ),
            Self::Overcommitted {
                would_be_bytes,
                limit_bytes,
            } => write!(
                f,
                "its pool would have {would_be_bytes} bytes provisioned, and {limit_bytes} may be"
            ),
            Self::Rule(rule) => write!(f, "{rule} forbids it"),
        }
    }
}

/// The pool of a node that a replica would come to, its place among the node's pools, and its score.
pub(super) fn candidate(
    at: usize,
    node: &Node,
    request: &Request<'_>,
    bound: &Bound,
    has_one: bool,
) -> Result<(usize, Score), Refusal> {
    if let Some(why) = &node.refused {
        return Err(Refusal::Node(why.clone()));
    }
    if has_one {
        return Err(Refusal::HasOne);
    }
    let named = |n: &&str| *n == node.node_id;
    if request
        .nodes
        .as_ref()
        .is_some_and(|only| !only.iter().any(named))
    {
        return Err(Refusal::NotNamed);
    }
    let best = best_pool(node, request)?;
    match bound.forbids(at) {
        Some(rule) => Err(Refusal::Rule(rule)),
        None => Ok(best),
    }
}

/// Of several reasons that of the pool that came furthest counts.
fn best_pool(node: &Node, request: &Request<'_>) -> Result<(usize, Score), Refusal> {
    let mut why = (0, Refusal::NoPool);
    let mut best: Option<(usize, Score)> = None;
    for (i, pool) in node.pools.iter().enumerate() {
        match fits(pool, request) {
            Err(refusal) => {
                if refusal.0 > why.0 {
                    why = refusal;
                }
            }
            Ok(()) => {
                let load = node.load_percent;
                let score = Score::of(pool, request.size_bytes, load, &request.limits);
                let key = |pool: &Pool, score: &Score| {
                    let least = std::cmp::Reverse(score.total());
                    (least, pool.replicas, pool.pool_id)
                };
                let better = best.is_none_or(|(b, s)| key(pool, &score) < key(&node.pools[b], &s));
                if better {
                    best = Some((i, score));
                }
            }
        }
    }
    best.ok_or(why.1)
}

/// With how far it came.
fn fits(pool: &Pool, request: &Request<'_>) -> Result<(), (u8, Refusal)> {
    let limits: &Limits = &request.limits;
    if pool.memory {
        return Err((1, Refusal::Memory));
    }
    let named = |p: &[uuid::Uuid]| p.contains(&pool.pool_id);
    if request.pools.as_deref().is_some_and(|only| !named(only)) {
        return Err((2, Refusal::PoolNotNamed));
    }
    if pool.free_bytes == 0 {
        return Err((3, Refusal::Full));
    }
    let (free_bytes, reserved_bytes) = (pool.free_bytes, limits.reserved(pool));
    if free_bytes <= reserved_bytes {
        return Err((
            4,
            Refusal::Reserved {
                free_bytes,
                reserved_bytes,
            },
        ));
    }
    let would_be_bytes = pool.provisioned_bytes.saturating_add(request.size_bytes);
    match limits.provisionable(pool) {
        Some(limit_bytes) if would_be_bytes > limit_bytes => Err((
            5,
            Refusal::Overcommitted {
                would_be_bytes,
                limit_bytes,
            },
        )),
        _ => Ok(()),
    }
}
