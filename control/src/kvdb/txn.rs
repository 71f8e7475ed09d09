//! Changing the store: one request after the other, each at a revision of its own, inside one transaction of the file.
//! A request is checked wholly before it changes anything, so that a refused one leaves no trace.
use super::error::StoreError;
use super::range::{self, Revisions};
use super::record::Version;
use super::span::Span;
use super::store::{LEASE_KEYS, LEASES, LIVE, LOG, META, VERSIONS, lease_keys, number};
use keelblock_api::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelblock_api::etcd::etcdserverpb::request_op::Request;
use keelblock_api::etcd::etcdserverpb::response_op::Response;
use keelblock_api::etcd::etcdserverpb::*;
use keelblock_api::etcd::mvccpb::event::EventType;
use keelblock_api::etcd::mvccpb::{Event, KeyValue};
use redb::{ReadableTable, Table, WriteTransaction};
use std::cmp::Ordering;
use std::collections::HashSet;

/// Comparisons, and operations per branch, of one transaction (etcd's default).
pub const TXN_OPS_MAX: usize = 128;
/// Bytes of one request (etcd's default).
pub const REQUEST_BYTES_MAX: usize = 1_572_864;
/// Transactions inside transactions: deeper ones would cost stack.
const NESTING_MAX: usize = 4;

/// The tables of an open write transaction, and the revision reached in it.
pub struct Writer<'t> {
    meta: Table<'t, &'static str, u64>,
    live: Table<'t, &'static [u8], u64>,
    versions: Table<'t, (&'static [u8], u64), &'static [u8]>,
    log: Table<'t, (u64, u32), &'static [u8]>,
    leases: Table<'t, i64, i64>,
    lease_keys: Table<'t, (i64, &'static [u8]), ()>,
    /// Where the store stands with what was applied so far.
    pub revisions: Revisions,
    /// Changes made at `revisions.current + 1` by the request that is being applied.
    changes: u32,
    /// Whether there is anything to commit.
    pub dirty: bool,
    /// All changes so far, as watchers are told of them.
    pub events: Vec<Event>,
}

/// Which branch a transaction takes, and those inside it: all comparisons look at the store before any change.
struct Plan {
    succeeded: bool,
    inner: Vec<Option<Plan>>,
}

impl<'t> Writer<'t> {
    /// Opens the tables.
    pub fn new(txn: &'t WriteTransaction) -> Result<Self, StoreError> {
        let meta = txn.open_table(META)?;
        let revisions = Revisions {
            current: number(&meta, "revision")?,
            compacted: number(&meta, "compacted")?,
        };
        Ok(Self {
            live: txn.open_table(LIVE)?,
            versions: txn.open_table(VERSIONS)?,
            log: txn.open_table(LOG)?,
            leases: txn.open_table(LEASES)?,
            lease_keys: txn.open_table(LEASE_KEYS)?,
            meta,
            revisions,
            changes: 0,
            dirty: false,
            events: Vec::new(),
        })
    }

    /// Ends a request: what it changed, if anything, is one revision.
    fn seal(&mut self) -> Result<(), StoreError> {
        if self.changes > 0 {
            self.revisions.current += 1;
            self.changes = 0;
            self.meta.insert("revision", self.revisions.current)?;
            self.dirty = true;
        }
        Ok(())
    }

    /// Sets a key.
    pub fn put(&mut self, request: &PutRequest) -> Result<PutResponse, StoreError> {
        self.check_put(request)?;
        let response = self.apply_put(request)?;
        self.seal()?;
        Ok(response)
    }

    /// Deletes keys.
    pub fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, StoreError> {
        Span::new(&request.key, &request.range_end)?;
        let response = self.apply_delete(request)?;
        self.seal()?;
        Ok(response)
    }

    /// Compares, then does one branch or the other.
    pub fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, StoreError> {
        check_shape(request, 0)?;
        let plan = self.plan(request)?;
        self.check_branch(request, &plan)?;
        let response = self.apply_txn(request, &plan)?;
        self.seal()?;
        Ok(response)
    }

    /// Makes a lease.
    pub fn lease_grant(&mut self, id: i64, ttl: i64) -> Result<(), StoreError> {
        if self.leases.get(id)?.is_some() {
            return Err(StoreError::LeaseExists);
        }
        self.leases.insert(id, ttl)?;
        self.dirty = true;
        Ok(())
    }

    /// Ends a lease and deletes its keys, all at one revision.
    pub fn lease_revoke(&mut self, id: i64) -> Result<(), StoreError> {
        if self.leases.remove(id)?.is_none() {
            return Err(StoreError::LeaseNotFound);
        }
        self.dirty = true;
        for key in lease_keys(&self.lease_keys, id)? {
            self.apply_delete(&DeleteRangeRequest {
                key,
                ..Default::default()
            })?;
        }
        self.seal()
    }

    /// Forgets what is older than `revision`: every version that is not the newest at or below it, and the log before it.
    pub fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        let Revisions { current, compacted } = self.revisions;
        let revision = u64::try_from(revision).unwrap_or(0);
        if revision > current {
            return Err(StoreError::FutureRevision);
        }
        if revision <= compacted {
            return Err(StoreError::Compacted { compacted });
        }
        // Only keys that changed since the last compaction can have something to forget.
        let mut changed = HashSet::new();
        for entry in self.log.range((compacted, 0)..(revision + 1, 0))? {
            changed.insert(entry?.1.value().to_vec());
        }
        for key in &changed {
            self.compact_key(key, revision)?;
        }
        self.log.retain_in((0, 0)..(revision, 0), |_, _| false)?;
        self.meta.insert("compacted", revision)?;
        self.revisions.compacted = revision;
        self.dirty = true;
        Ok(())
    }

    /// A deletion at exactly `revision` stays until the next compaction, because the log still names it.
    fn compact_key(&mut self, key: &[u8], revision: u64) -> Result<(), StoreError> {
        let Some(newest) = self.versions.range((key, 0)..=(key, revision))?.next_back() else {
            return Ok(());
        };
        let (newest, forget_newest) = {
            let (at, record) = newest?;
            let at = at.value().1;
            (
                at,
                at < revision && Version::decode(record.value())? == Version::Tombstone,
            )
        };
        let end = if forget_newest { newest + 1 } else { newest };
        self.versions
            .retain_in((key, 0)..(key, end), |_, _| false)?;
        Ok(())
    }

    fn check_put(&self, request: &PutRequest) -> Result<(), StoreError> {
        if request.key.is_empty() {
            return Err(StoreError::EmptyKey);
        }
        if request.ignore_value && !request.value.is_empty() {
            return Err(StoreError::ValueProvided);
        }
        if request.ignore_lease && request.lease != 0 {
            return Err(StoreError::LeaseProvided);
        }
        if (request.ignore_value || request.ignore_lease)
            && self.live.get(request.key.as_slice())?.is_none()
        {
            return Err(StoreError::KeyNotFound);
        }
        if request.lease != 0 && self.leases.get(request.lease)?.is_none() {
            return Err(StoreError::LeaseNotFound);
        }
        Ok(())
    }

    fn apply_put(&mut self, request: &PutRequest) -> Result<PutResponse, StoreError> {
        let revision = self.revisions.current + 1;
        let key = request.key.as_slice();
        let before = range::get(&self.live, &self.versions, key)?;
        let lease_before = before.as_ref().map_or(0, |kv| kv.lease);
        let lease = if request.ignore_lease {
            lease_before
        } else {
            request.lease
        };
        let value = match &before {
            Some(kv) if request.ignore_value => kv.value.as_slice(),
            _ => request.value.as_slice(),
        };
        let record = Version::Put {
            create_revision: before
                .as_ref()
                .map_or(revision, |kv| kv.create_revision as u64),
            version: before.as_ref().map_or(1, |kv| kv.version as u64 + 1),
            lease,
            value,
        };
        self.versions
            .insert((key, revision), record.encode().as_slice())?;
        self.live.insert(key, revision)?;
        let now = record.key_value(key, revision);
        self.log_change(EventType::Put, now.unwrap_or_default())?;
        if lease_before != lease {
            self.lease_keys.remove((lease_before, key))?;
        }
        if lease != 0 {
            self.lease_keys.insert((lease, key), ())?;
        }
        Ok(PutResponse {
            header: None,
            prev_kv: before.filter(|_| request.prev_kv),
        })
    }

    fn apply_delete(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, StoreError> {
        let span = Span::new(&request.key, &request.range_end)?;
        let revision = self.revisions.current + 1;
        let mut response = DeleteRangeResponse::default();
        if span.is_empty() {
            return Ok(response);
        }
        let mut gone: Vec<KeyValue> = Vec::new();
        for entry in self.live.range::<&[u8]>(span.bounds())? {
            let (key, at) = entry?;
            gone.extend(range::version_at(&self.versions, key.value(), at.value())?);
        }
        for kv in &gone {
            let key = kv.key.as_slice();
            self.versions
                .insert((key, revision), Version::Tombstone.encode().as_slice())?;
            self.live.remove(key)?;
            let deleted = KeyValue {
                key: key.to_vec(),
                mod_revision: revision as i64,
                ..Default::default()
            };
            self.log_change(EventType::Delete, deleted)?;
            self.lease_keys.remove((kv.lease, key))?;
        }
        response.deleted = gone.len() as i64;
        if request.prev_kv {
            response.prev_kvs = gone;
        }
        Ok(response)
    }

    fn log_change(&mut self, kind: EventType, kv: KeyValue) -> Result<(), StoreError> {
        let at = (kv.mod_revision as u64, self.changes);
        self.log.insert(at, kv.key.as_slice())?;
        self.changes += 1;
        self.events.push(Event {
            r#type: kind.into(),
            kv: Some(kv),
            prev_kv: None,
        });
        Ok(())
    }

    fn plan(&self, request: &TxnRequest) -> Result<Plan, StoreError> {
        let mut succeeded = true;
        for compare in &request.compare {
            succeeded = succeeded && self.holds(compare)?;
        }
        let mut inner = Vec::new();
        for op in branch(request, succeeded) {
            inner.push(match &op.request {
                Some(Request::RequestTxn(txn)) => Some(self.plan(txn)?),
                _ => None,
            });
        }
        Ok(Plan { succeeded, inner })
    }

    /// A comparison over a range holds if it does for every key of it; an absent key counts as all zeroes, and has no value.
    fn holds(&self, compare: &Compare) -> Result<bool, StoreError> {
        let span = Span::new(&compare.key, &compare.range_end)?;
        let mut any = false;
        if !span.is_empty() {
            for entry in self.live.range::<&[u8]>(span.bounds())? {
                let (key, at) = entry?;
                any = true;
                let kv = range::version_at(&self.versions, key.value(), at.value())?;
                if !kv.is_some_and(|kv| compare_key(&kv, compare)) {
                    return Ok(false);
                }
            }
        }
        if any {
            return Ok(true);
        }
        Ok(compare.target() != CompareTarget::Value && compare_key(&KeyValue::default(), compare))
    }

    fn check_branch(&self, request: &TxnRequest, plan: &Plan) -> Result<(), StoreError> {
        for (op, inner) in branch(request, plan.succeeded).iter().zip(&plan.inner) {
            match (&op.request, inner) {
                (Some(Request::RequestPut(put)), _) => self.check_put(put)?,
                (Some(Request::RequestRange(range)), _) => range::check(range, self.revisions)?,
                (Some(Request::RequestTxn(txn)), Some(plan)) => self.check_branch(txn, plan)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn apply_txn(&mut self, request: &TxnRequest, plan: &Plan) -> Result<TxnResponse, StoreError> {
        let mut responses = Vec::new();
        for (op, inner) in branch(request, plan.succeeded).iter().zip(&plan.inner) {
            // A range of now sees what the operations before it changed; one of a revision does not.
            let now = Revisions {
                current: self.revisions.current + u64::from(self.changes > 0),
                ..self.revisions
            };
            let response = match (&op.request, inner) {
                (Some(Request::RequestPut(put)), _) => Response::ResponsePut(self.apply_put(put)?),
                (Some(Request::RequestDeleteRange(delete)), _) => {
                    Response::ResponseDeleteRange(self.apply_delete(delete)?)
                }
                (Some(Request::RequestRange(r)), _) => {
                    Response::ResponseRange(range::range(&self.live, &self.versions, r, now)?)
                }
                (Some(Request::RequestTxn(txn)), Some(plan)) => {
                    Response::ResponseTxn(self.apply_txn(txn, plan)?)
                }
                _ => continue,
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        Ok(TxnResponse {
            header: None,
            succeeded: plan.succeeded,
            responses,
        })
    }
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded {
        &request.success
    } else {
        &request.failure
    }
}

fn compare_key(kv: &KeyValue, compare: &Compare) -> bool {
    let order = match (compare.target(), &compare.target_union) {
        (CompareTarget::Value, union) => {
            let wanted = if let Some(TargetUnion::Value(value)) = union {
                value.as_slice()
            } else {
                &[]
            };
            kv.value.as_slice().cmp(wanted)
        }
        (CompareTarget::Version, Some(TargetUnion::Version(n))) => kv.version.cmp(n),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(n))) => kv.create_revision.cmp(n),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(n))) => kv.mod_revision.cmp(n),
        (CompareTarget::Lease, Some(TargetUnion::Lease(n))) => kv.lease.cmp(n),
        // The operand of another target, or none, is zero.
        (CompareTarget::Version, _) => kv.version.cmp(&0),
        (CompareTarget::Create, _) => kv.create_revision.cmp(&0),
        (CompareTarget::Mod, _) => kv.mod_revision.cmp(&0),
        (CompareTarget::Lease, _) => kv.lease.cmp(&0),
    };
    match compare.result() {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::NotEqual => order != Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
    }
}

/// What a transaction may look like, whatever the store holds.
fn check_shape(request: &TxnRequest, depth: usize) -> Result<(), StoreError> {
    let too_many = [
        request.compare.len(),
        request.success.len(),
        request.failure.len(),
    ]
    .iter()
    .any(|n| *n > TXN_OPS_MAX);
    if too_many || depth > NESTING_MAX {
        return Err(StoreError::TooManyOps);
    }
    for compare in &request.compare {
        Span::new(&compare.key, &compare.range_end)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestPut(put)) if put.key.is_empty() => {
                return Err(StoreError::EmptyKey);
            }
            Some(Request::RequestRange(r)) => drop(Span::new(&r.key, &r.range_end)?),
            Some(Request::RequestDeleteRange(d)) => drop(Span::new(&d.key, &d.range_end)?),
            Some(Request::RequestTxn(txn)) => check_shape(txn, depth + 1)?,
            _ => {}
        }
    }
    changes_of(&request.success)?;
    changes_of(&request.failure)?;
    Ok(())
}

#[derive(Default)]
struct ChangedKeys {
    puts: HashSet<Vec<u8>>,
    deletions: Vec<Span>,
}

/// What a branch may change; two changes of one key are refused, since a revision has one version of a key. The two
/// branches of a transaction inside may change the same keys, as only one of them is taken.
fn changes_of(ops: &[RequestOp]) -> Result<ChangedKeys, StoreError> {
    let mut all = ChangedKeys::default();
    for op in ops {
        let mut these = ChangedKeys::default();
        match &op.request {
            Some(Request::RequestPut(put)) => drop(these.puts.insert(put.key.clone())),
            Some(Request::RequestDeleteRange(d)) => {
                these.deletions.push(Span::new(&d.key, &d.range_end)?)
            }
            Some(Request::RequestTxn(txn)) => {
                for changes in [changes_of(&txn.success)?, changes_of(&txn.failure)?] {
                    these.puts.extend(changes.puts);
                    these.deletions.extend(changes.deletions);
                }
            }
            _ => {}
        }
        let clash = these
            .puts
            .iter()
            .any(|key| all.puts.contains(key) || all.deletions.iter().any(|d| d.contains(key)))
            || these
                .deletions
                .iter()
                .any(|d| all.puts.iter().any(|key| d.contains(key)));
        if clash {
            return Err(StoreError::DuplicateKey);
        }
        all.puts.extend(these.puts);
        all.deletions.extend(these.deletions);
    }
    Ok(all)
}
