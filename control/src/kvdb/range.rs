//! Reading: ranges of keys as they are or were, sorted, limited and filtered as the request says.
use super::error::StoreError;
use super::record::Version;
use super::span::Span;
use keelblock_api::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelblock_api::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use keelblock_api::etcd::mvccpb::KeyValue;
use redb::ReadableTable;

/// Table of the present: key → revision of its newest version. Deleted keys are absent.
pub trait Live: ReadableTable<&'static [u8], u64> {}
impl<T: ReadableTable<&'static [u8], u64>> Live for T {}

/// Table of all versions that are left: (key, revision) → record.
pub trait Versions: ReadableTable<(&'static [u8], u64), &'static [u8]> {}
impl<T: ReadableTable<(&'static [u8], u64), &'static [u8]>> Versions for T {}

/// Where a reader stands: the newest revision, and the oldest that can still be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revisions {
    /// The newest.
    pub current: u64,
    /// Everything before it is compacted.
    pub compacted: u64,
}

/// A key as it is now.
pub fn get(
    live: &impl Live,
    versions: &impl Versions,
    key: &[u8],
) -> Result<Option<KeyValue>, StoreError> {
    let Some(revision) = live.get(key)?.map(|r| r.value()) else {
        return Ok(None);
    };
    version_at(versions, key, revision)
}

/// A key's version of exactly `revision`.
pub fn version_at(
    versions: &impl Versions,
    key: &[u8],
    revision: u64,
) -> Result<Option<KeyValue>, StoreError> {
    let Some(record) = versions.get((key, revision))? else {
        return Err(StoreError::Damaged {
            table: "versions",
            what: "a version that another table names is missing",
        });
    };
    Ok(Version::decode(record.value())?.key_value(key, revision))
}

/// Checks a range request against where the store stands, without reading.
pub fn check(request: &RangeRequest, at: Revisions) -> Result<(), StoreError> {
    Span::new(&request.key, &request.range_end)?;
    if SortOrder::try_from(request.sort_order).is_err()
        || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(StoreError::InvalidSort);
    }
    let revision = request.revision.max(0) as u64;
    if revision > at.current {
        return Err(StoreError::FutureRevision);
    }
    if revision > 0 && revision < at.compacted {
        return Err(StoreError::Compacted {
            compacted: at.compacted,
        });
    }
    Ok(())
}

/// Answers a range request (without its header).
pub fn range(
    live: &impl Live,
    versions: &impl Versions,
    request: &RangeRequest,
    at: Revisions,
) -> Result<RangeResponse, StoreError> {
    check(request, at)?;
    let span = Span::new(&request.key, &request.range_end)?;
    let limit = usize::try_from(request.limit)
        .ok()
        .filter(|l| *l > 0)
        .unwrap_or(usize::MAX);
    let in_order = !sorts(request) && !filters(request);
    // A plain range keeps one key beyond the limit, to know that there are more; the rest is only counted.
    let keep = match (request.count_only, in_order) {
        (true, _) => 0,
        (false, true) => limit.saturating_add(1),
        (false, false) => usize::MAX,
    };
    let mut found = Found {
        kvs: Vec::new(),
        count: 0,
        keep,
    };
    if !span.is_empty() {
        if request.revision > 0 && (request.revision as u64) < at.current {
            scan_past(versions, &span, request.revision as u64, &mut found)?;
        } else {
            scan_now(live, versions, &span, &mut found)?;
        }
    }
    let Found { mut kvs, count, .. } = found;
    kvs.retain(|kv| passes(kv, request));
    sort(&mut kvs, request);
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    Ok(RangeResponse {
        header: None,
        kvs,
        more,
        count,
    })
}

struct Found {
    kvs: Vec<KeyValue>,
    count: i64,
    keep: usize,
}

impl Found {
    fn add(
        &mut self,
        kv: impl FnOnce() -> Result<Option<KeyValue>, StoreError>,
    ) -> Result<(), StoreError> {
        self.count += 1;
        if self.kvs.len() < self.keep {
            self.kvs.extend(kv()?);
        }
        Ok(())
    }
}

fn scan_now(
    live: &impl Live,
    versions: &impl Versions,
    span: &Span,
    found: &mut Found,
) -> Result<(), StoreError> {
    for entry in live.range::<&[u8]>(span.bounds())? {
        let (key, revision) = entry?;
        found.add(|| version_at(versions, key.value(), revision.value()))?;
    }
    Ok(())
}

/// The newest version at or below `revision` of every key in the span.
fn scan_past(
    versions: &impl Versions,
    span: &Span,
    revision: u64,
    found: &mut Found,
) -> Result<(), StoreError> {
    let mut newest: Option<KeyValue> = None;
    let mut newest_key: Vec<u8> = Vec::new();
    for entry in versions.range(span.version_bounds())? {
        let (at, record) = entry?;
        let (key, changed) = at.value();
        if key != newest_key.as_slice() {
            if let Some(kv) = newest.take() {
                found.add(|| Ok(Some(kv)))?;
            }
            newest_key.clear();
            newest_key.extend_from_slice(key);
        }
        if changed <= revision {
            newest = Version::decode(record.value())?.key_value(key, changed);
        }
    }
    if let Some(kv) = newest {
        found.add(|| Ok(Some(kv)))?;
    }
    Ok(())
}

fn sorts(request: &RangeRequest) -> bool {
    request.sort_target() != SortTarget::Key || request.sort_order() == SortOrder::Descend
}

fn filters(request: &RangeRequest) -> bool {
    [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ]
    .iter()
    .any(|r| *r != 0)
}

fn passes(kv: &KeyValue, request: &RangeRequest) -> bool {
    let within =
        |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(
        kv.mod_revision,
        request.min_mod_revision,
        request.max_mod_revision,
    ) && within(
        kv.create_revision,
        request.min_create_revision,
        request.max_create_revision,
    )
}

/// A target without an order sorts upward; keys come in order by themselves.
fn sort(kvs: &mut [KeyValue], request: &RangeRequest) {
    if !sorts(request) {
        return;
    }
    match request.sort_target() {
        SortTarget::Key => {}
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if request.sort_order() == SortOrder::Descend {
        kvs.reverse();
    }
}
