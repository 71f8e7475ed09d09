//! The database file: its tables, opening it, and reading it at one consistent point.
use super::error::StoreError;
use super::range::{self, Revisions};
use super::record::Version;
use super::span::Span;
use keelblock_api::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use keelblock_api::etcd::mvccpb::{Event, KeyValue, event::EventType};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::{
    Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, TableDefinition,
};
use std::path::{Path, PathBuf};

/// Single numbers, by name.
pub const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Key → revision of its newest version, for keys that exist.
pub const LIVE: TableDefinition<&[u8], u64> = TableDefinition::new("live");
/// (key, revision) → what the key became then.
pub const VERSIONS: TableDefinition<(&[u8], u64), &[u8]> = TableDefinition::new("versions");
/// (revision, number within it) → the key that changed.
pub const LOG: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("log");
/// Lease → seconds to live.
pub const LEASES: TableDefinition<i64, i64> = TableDefinition::new("leases");
/// (lease, key): what its end deletes.
pub const LEASE_KEYS: TableDefinition<(i64, &[u8]), ()> = TableDefinition::new("lease_keys");

/// The layout of the tables that this version writes.
const FORMAT: u64 = 1;
/// redb's page cache. The store is small; its default of 1 GiB would be most of a node's memory.
const CACHE_BYTES: usize = 8 << 20;

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{path} is in use by another process: is a control process already running on this data directory?"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later version.
    #[error(
        "{path} has format {found}, this version knows {FORMAT}: run the version that wrote it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Anything else.
    #[error("cannot open the KVDB's file {path}: {error}")]
    Store {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: String,
    },
}

/// Who the store says it is; random, fixed when the file is made.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// etcd's cluster id (not Keelblock's).
    pub cluster_id: u64,
    /// The only member.
    pub member_id: u64,
    /// Times that the file has been opened: what takes the place of Raft's term.
    pub term: u64,
}

/// The open database.
pub struct Store {
    pub(super) db: Database,
    path: PathBuf,
    identity: Identity,
}

impl Store {
    /// Opens the file, making it if there is none.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |error: StoreError| OpenError::Store {
            path: path.to_owned(),
            error: error.to_string(),
        };
        let db = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|error| match error {
                redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
                    path: path.to_owned(),
                },
                other => OpenError::Store {
                    path: path.to_owned(),
                    error: other.to_string(),
                },
            })?;
        let (identity, format) = prepare(&db).map_err(failed)?;
        if format != FORMAT {
            return Err(OpenError::Format {
                path: path.to_owned(),
                found: format,
            });
        }
        Ok(Self {
            db,
            path: path.to_owned(),
            identity,
        })
    }

    /// Who it says it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |m| m.len())
    }

    /// The store as it is now; writes that come later do not show in it.
    pub fn snapshot(&self) -> Result<Snapshot, StoreError> {
        Snapshot::new(self.db.begin_read()?)
    }
}

/// Makes the tables and numbers of a new file, and counts the opening.
fn prepare(db: &Database) -> Result<(Identity, u64), StoreError> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    let found = {
        let mut meta = txn.open_table(META)?;
        txn.open_table(LIVE)?;
        txn.open_table(VERSIONS)?;
        txn.open_table(LOG)?;
        txn.open_table(LEASES)?;
        txn.open_table(LEASE_KEYS)?;
        if meta.is_empty()? {
            let mut random = StdRng::from_os_rng();
            meta.insert("format", FORMAT)?;
            meta.insert("cluster_id", random.random::<u64>())?;
            meta.insert("member_id", random.random::<u64>())?;
            // etcd's store begins at revision 1, so that 0 can mean "now".
            meta.insert("revision", 1)?;
            meta.insert("compacted", 0)?;
            meta.insert("term", 0)?;
        }
        let term = number(&meta, "term")? + 1;
        meta.insert("term", term)?;
        let identity = Identity {
            cluster_id: number(&meta, "cluster_id")?,
            member_id: number(&meta, "member_id")?,
            term,
        };
        (identity, number(&meta, "format")?)
    };
    txn.commit()?;
    Ok(found)
}

/// A number that every file has.
pub(super) fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &'static str,
) -> Result<u64, StoreError> {
    let found = meta.get(name)?.map(|v| v.value());
    found.ok_or(StoreError::Damaged {
        table: "meta",
        what: name,
    })
}

/// One consistent point of the store.
pub struct Snapshot {
    live: ReadOnlyTable<&'static [u8], u64>,
    versions: ReadOnlyTable<(&'static [u8], u64), &'static [u8]>,
    log: ReadOnlyTable<(u64, u32), &'static [u8]>,
    leases: ReadOnlyTable<i64, i64>,
    lease_keys: ReadOnlyTable<(i64, &'static [u8]), ()>,
    /// Where it stands.
    pub revisions: Revisions,
}

/// Changes read from the log: whole revisions.
#[derive(Debug, Default)]
pub struct Changes {
    /// In order of their revisions.
    pub events: Vec<Event>,
    /// The last revision that was looked at.
    pub through: u64,
}

/// Which changes a watcher wants.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Of which keys.
    pub span: Span,
    /// Puts.
    pub puts: bool,
    /// Deletions.
    pub deletions: bool,
    /// With what the key was before.
    pub prev_kv: bool,
}

impl Snapshot {
    fn new(txn: ReadTransaction) -> Result<Self, StoreError> {
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
            revisions,
        })
    }

    /// Answers a range request, without its header.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
        range::range(&self.live, &self.versions, request, self.revisions)
    }

    /// Changes from `from` on, up to about `events_max` log entries.
    pub fn changes(
        &self,
        from: u64,
        filter: &Filter,
        entries_max: usize,
    ) -> Result<Changes, StoreError> {
        if from < self.revisions.compacted {
            return Err(StoreError::Compacted {
                compacted: self.revisions.compacted,
            });
        }
        let mut changes = Changes {
            events: Vec::new(),
            through: self.revisions.current,
        };
        let mut last = 0;
        for (seen, entry) in self.log.range((from, 0)..)?.enumerate() {
            let (at, key) = entry?;
            let (revision, _) = at.value();
            if seen >= entries_max && revision != last {
                changes.through = last;
                break;
            }
            last = revision;
            if filter.span.contains(key.value()) {
                changes
                    .events
                    .extend(self.event(key.value(), revision, filter)?);
            }
        }
        Ok(changes)
    }

    fn event(
        &self,
        key: &[u8],
        revision: u64,
        filter: &Filter,
    ) -> Result<Option<Event>, StoreError> {
        let put = range::version_at(&self.versions, key, revision)?;
        if !(if put.is_some() {
            filter.puts
        } else {
            filter.deletions
        }) {
            return Ok(None);
        }
        let prev_kv = if filter.prev_kv {
            self.before(key, revision)?
        } else {
            None
        };
        let r#type = if put.is_some() {
            EventType::Put
        } else {
            EventType::Delete
        };
        let deleted = || KeyValue {
            key: key.to_vec(),
            mod_revision: revision as i64,
            ..Default::default()
        };
        Ok(Some(Event {
            r#type: r#type.into(),
            kv: Some(put.unwrap_or_else(deleted)),
            prev_kv,
        }))
    }

    /// The key as it was just before `revision`, if that is not compacted.
    fn before(&self, key: &[u8], revision: u64) -> Result<Option<KeyValue>, StoreError> {
        match self.versions.range((key, 0)..(key, revision))?.next_back() {
            None => Ok(None),
            Some(entry) => {
                let (at, record) = entry?;
                Ok(Version::decode(record.value())?.key_value(key, at.value().1))
            }
        }
    }

    /// All leases and their seconds to live.
    pub fn leases(&self) -> Result<Vec<(i64, i64)>, StoreError> {
        self.leases
            .iter()?
            .map(|entry| {
                entry
                    .map(|(id, ttl)| (id.value(), ttl.value()))
                    .map_err(Into::into)
            })
            .collect()
    }

    /// The keys of a lease.
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Vec<u8>>, StoreError> {
        lease_keys(&self.lease_keys, id)
    }
}

/// The keys of a lease, in order.
pub(super) fn lease_keys(
    table: &impl ReadableTable<(i64, &'static [u8]), ()>,
    id: i64,
) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut keys = Vec::new();
    for entry in table.range((id, &[][..])..)? {
        let (at, ()) = entry.map(|(at, _)| (at, ()))?;
        let (lease, key) = at.value();
        if lease != id {
            break;
        }
        keys.push(key.to_vec());
    }
    Ok(keys)
}
