//! The record of a volume's replication. What is read is checked, and what is made is: there is no value of it that breaks a rule of its own.

use std::fmt;
use std::ops::Deref;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Most members of a set, most replicas that stay, and most that a volume can be wanted to have.
pub const MEMBERS_MAX: usize = 5;
/// Most replicas of a record, with those that come and go.
pub const REPLICAS_MAX: usize = 8;

/// Bits of an epoch that count attaches; the generation is above them.
const COUNTER_BITS: u32 = 24;

/// Which coordinator: cluster generation and counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u32);

impl Epoch {
    /// The highest counter.
    pub const COUNTER_MAX: u32 = (1 << COUNTER_BITS) - 1;

    /// Of a generation; `None` if there is no such counter.
    pub fn new(generation: u8, counter: u32) -> Option<Self> {
        let fits = counter <= Self::COUNTER_MAX;
        fits.then(|| Self(u32::from(generation) << COUNTER_BITS | counter))
    }

    /// Of what is on the wire: every number is one.
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The cluster's generation when it was raised.
    pub fn generation(self) -> u8 {
        (self.0 >> COUNTER_BITS) as u8
    }

    /// How many epochs its generation has had up to it.
    pub fn counter(self) -> u32 {
        self.0 & Self::COUNTER_MAX
    }

    /// As it is on the wire and in stamps.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation(), self.counter())
    }
}

/// 16 random bytes; 32 hex digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 16]);

impl Token {
    /// A new one.
    pub fn random() -> Self {
        Self(StdRng::from_os_rng().random())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| hex);
        let number = number.ok_or_else(|| D::Error::custom("not 32 hex digits"))?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// Whose an epoch is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// Its node.
    pub node_id: String,
    /// Of its data-path process: another after each start.
    pub incarnation: Token,
    /// Of the swap that gave it the epoch.
    pub attempt: Token,
}

/// Whether the epoch's holder serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not yet: it takes over.
    Taking,
    /// It may.
    Serving,
}

/// What a replica is to the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaState {
    /// It never was in the set.
    Empty,
    /// It is in the set.
    Member,
    /// It was in the set.
    Behind,
    /// It is to be deleted.
    Leaving,
}

impl fmt::Display for ReplicaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Member => "a member",
            Self::Behind => "behind",
            Self::Leaving => "leaving",
        })
    }
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// Its id: never used again.
    pub replica_id: Uuid,
    /// Its node.
    pub node_id: String,
    /// Its pool.
    pub pool_id: Uuid,
    /// What it is to the set.
    pub state: ReplicaState,
}

/// What the record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// The cluster's when the set was last known to be right.
    pub generation: u8,
    /// Rises by 1 with each change.
    pub version: u64,
    /// The highest that anybody was given.
    pub epoch: Epoch,
    /// To whom. `None`: nobody ever attached the volume, or a person decided since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// Whether it serves.
    pub phase: Phase,
    /// The in-sync set.
    pub members: Vec<Uuid>,
    /// Nothing is served by fewer.
    pub minimum: u8,
    /// How many members confirm a write.
    pub write_quorum: u8,
    /// All that exist.
    pub replicas: Vec<Replica>,
    /// How many there should be.
    pub wanted: u8,
}

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Too few or too many members.
    #[error("the set has {0} members: 1 to {MEMBERS_MAX} are possible")]
    Members(usize),
    /// A member is there twice.
    #[error("replica {0} is in the set twice")]
    MemberTwice(Uuid),
    /// Too many replicas.
    #[error("{0} replicas: at most {REPLICAS_MAX} are possible")]
    Replicas(usize),
    /// Too many replicas stay.
    #[error(
        "{0} replicas that stay: at most {MEMBERS_MAX} are possible, so one has to leave first"
    )]
    Staying(usize),
    /// A replica is there twice.
    #[error("replica {0} is listed twice")]
    ReplicaTwice(Uuid),
    /// A member is no replica.
    #[error("replica {0} is in the set, and not listed")]
    NoReplica(Uuid),
    /// Set and state do not agree.
    #[error("replica {replica} is {state}, and {}in the set", if *.member { "" } else { "not " })]
    State {
        /// Which.
        replica: Uuid,
        /// What it says it is.
        state: ReplicaState,
        /// Whether it is in the set.
        member: bool,
    },
    /// Wanted too few or too many.
    #[error("{0} replicas are wanted: 1 to {MEMBERS_MAX} are possible")]
    Wanted(u8),
    /// The minimum is not between 1 and what is wanted.
    #[error("the minimum is {minimum} of {wanted} replicas")]
    Minimum {
        /// The minimum.
        minimum: u8,
        /// Replicas wanted.
        wanted: u8,
    },
    /// The set is below the minimum.
    #[error("the set has {members} members, and the minimum is {minimum}")]
    BelowMinimum {
        /// Members.
        members: usize,
        /// The minimum.
        minimum: u8,
    },
    /// The write quorum does not follow from set and minimum.
    #[error("the write quorum is {found}, and must be {expected}")]
    WriteQuorum {
        /// As it says.
        found: u8,
        /// As it must be.
        expected: u8,
    },
    /// The epoch's holder is of another generation than the set that it serves, or of one before it.
    #[error("epoch {epoch} has a holder, and the set is of generation {generation}")]
    Generation {
        /// The epoch.
        epoch: Epoch,
        /// The record's generation.
        generation: u8,
    },
    /// It is served, and nobody has it.
    #[error("it is served, and has no holder")]
    NoHolder,
    /// It has a holder that nothing gave it to.
    #[error("it has a holder, and epoch {0} was given to nobody")]
    Holder(Epoch),
    /// Versions begin at 1.
    #[error("its version is 0")]
    Version,
}

/// A record that is as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct ReplicationRecord(Fields);

impl Deref for ReplicationRecord {
    type Target = Fields;

    fn deref(&self) -> &Fields {
        &self.0
    }
}

impl TryFrom<Fields> for ReplicationRecord {
    type Error = Fault;

    fn try_from(fields: Fields) -> Result<Self, Fault> {
        fields.check()?;
        Ok(Self(fields))
    }
}

impl From<ReplicationRecord> for Fields {
    fn from(record: ReplicationRecord) -> Self {
        record.0
    }
}

/// How many of `members` confirm a write, of which `minimum` must be there (§1).
pub fn write_quorum(members: usize, minimum: u8) -> u8 {
    let most = match members {
        0..=2 => members,
        n => n / 2 + 1,
    };
    // Sets are small: `check` has seen to it, or will.
    minimum.max(u8::try_from(most).unwrap_or(u8::MAX))
}

impl ReplicationRecord {
    /// Of a volume that is made: its replicas are empty, so all of them are in sync.
    ///
    /// # Errors
    /// Numbers that do not fit together.
    pub fn new(
        generation: u8,
        replicas: impl IntoIterator<Item = (Uuid, String, Uuid)>,
        minimum: u8,
        wanted: u8,
    ) -> Result<Self, Fault> {
        let replica = |(replica_id, node_id, pool_id)| Replica {
            replica_id,
            node_id,
            pool_id,
            state: ReplicaState::Member,
        };
        let replicas: Vec<_> = replicas.into_iter().map(replica).collect();
        let members: Vec<_> = replicas.iter().map(|r| r.replica_id).collect();
        let epoch = Epoch(u32::from(generation) << COUNTER_BITS);
        Self::try_from(Fields {
            generation,
            version: 1,
            epoch,
            holder: None,
            phase: Phase::Taking,
            write_quorum: write_quorum(members.len(), minimum),
            members,
            minimum,
            replicas,
            wanted,
        })
    }

    /// The same of a volume that begins with blocks of another one: its epochs go on above that one's, as its stamps must.
    pub fn above(self, epoch: Epoch) -> Self {
        let mut fields = self.0;
        fields.epoch = fields.epoch.max(epoch);
        Self(fields)
    }

    /// Whether its set means nothing: the KVDB was restored since it was known to be right (rule 10).
    pub fn unverified(&self, cluster_generation: u8) -> bool {
        self.generation < cluster_generation
    }
}

impl Fields {
    /// The replica of that id.
    pub fn replica(&self, id: Uuid) -> Option<&Replica> {
        self.replicas.iter().find(|r| r.replica_id == id)
    }

    /// How many members a takeover must hear: with any write quorum they have one in common.
    pub fn read_quorum(&self) -> usize {
        self.members.len() + 1 - usize::from(self.write_quorum).min(self.members.len())
    }

    fn check(&self) -> Result<(), Fault> {
        self.check_replicas()?;
        let members = self.members.len();
        if !(1..=MEMBERS_MAX as u8).contains(&self.wanted) {
            return Err(Fault::Wanted(self.wanted));
        }
        let (minimum, wanted) = (self.minimum, self.wanted);
        if minimum == 0 || minimum > wanted {
            return Err(Fault::Minimum { minimum, wanted });
        }
        if members < usize::from(minimum) {
            return Err(Fault::BelowMinimum { members, minimum });
        }
        let expected = write_quorum(members, minimum);
        if self.write_quorum != expected {
            let found = self.write_quorum;
            return Err(Fault::WriteQuorum { found, expected });
        }
        let wrong = match (&self.holder, self.phase) {
            // A person decided (K7): the next epoch will be of this generation.
            (None, _) => false,
            (Some(_), Phase::Taking) => self.epoch.generation() < self.generation,
            (Some(_), Phase::Serving) => self.epoch.generation() != self.generation,
        };
        if wrong {
            return Err(Fault::Generation {
                epoch: self.epoch,
                generation: self.generation,
            });
        }
        match &self.holder {
            None if self.phase == Phase::Serving => Err(Fault::NoHolder),
            Some(_) if self.epoch.counter() == 0 => Err(Fault::Holder(self.epoch)),
            _ if self.version == 0 => Err(Fault::Version),
            _ => Ok(()),
        }
    }

    fn check_replicas(&self) -> Result<(), Fault> {
        let members = self.members.len();
        if members == 0 || members > MEMBERS_MAX {
            return Err(Fault::Members(members));
        }
        if self.replicas.len() > REPLICAS_MAX {
            return Err(Fault::Replicas(self.replicas.len()));
        }
        // Each replica keeps the ids of four others at most.
        let stay = self.replicas.iter();
        let stay = stay.filter(|r| r.state != ReplicaState::Leaving).count();
        if stay > MEMBERS_MAX {
            return Err(Fault::Staying(stay));
        }
        for (i, id) in self.members.iter().enumerate() {
            if self.members[..i].contains(id) {
                return Err(Fault::MemberTwice(*id));
            }
            if self.replica(*id).is_none() {
                return Err(Fault::NoReplica(*id));
            }
        }
        for (i, replica) in self.replicas.iter().enumerate() {
            let id = replica.replica_id;
            if self.replicas[..i].iter().any(|r| r.replica_id == id) {
                return Err(Fault::ReplicaTwice(id));
            }
            let member = self.members.contains(&id);
            if member != (replica.state == ReplicaState::Member) {
                return Err(Fault::State {
                    replica: id,
                    state: replica.state,
                    member,
                });
            }
        }
        Ok(())
    }
}
