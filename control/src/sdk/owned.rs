//! Whose a volume is, before anything is done with it (`docs/auth.md`, Owners). What is asked for by name is done by id from then on: the name may be another's a moment later.
use super::Services;
use crate::auth::{Access, Acls, Caller, OwnershipRecord};
use crate::error::OpError;
use crate::records::{Found, SnapshotRecord};
use keelblock_api::openstorage::Ownership;
use keelblock_api::openstorage::ownership::{AccessControl, AccessType, PublicAccessControl};
use std::collections::{BTreeMap, HashMap};
use tonic::Request;

impl Services {
    /// Who calls.
    pub(super) fn caller<T>(&self, request: &Request<T>) -> Result<Caller, OpError> {
        match (&self.door, request.extensions().get::<Caller>()) {
            (None, _) => Ok(Caller::Anybody),
            (Some(_), Some(caller)) => Ok(caller.clone()),
            (Some(_), None) => Err(OpError::Internal("nobody looked who calls".into())),
        }
    }

    /// What an operation is to do this with: the id of the volume or snapshot of this name or id, if the caller may.
    ///
    /// # Errors
    /// [`OpError::Denied`]; [`OpError::NotFound`].
    pub(super) async fn allowed(
        &self,
        caller: &Caller,
        name: &str,
        access: Access,
    ) -> Result<String, OpError> {
        if caller.asks_nobody() {
            return Ok(name.to_owned());
        }
        let found = self.node().registry.find("volume_id", name).await?;
        let found = found.ok_or_else(|| OpError::no_volume(name))?;
        caller.must(ownership(&found), access, name)?;
        Ok(match found {
            Found::Volume(v) => v.record.volume_id.to_string(),
            Found::Snapshot(s) => s.record.snapshot_id.to_string(),
        })
    }

    /// That a volume or snapshot that is made again is one that the caller could have made.
    ///
    /// # Errors
    /// [`OpError::Denied`].
    pub(super) async fn not_anothers(&self, caller: &Caller, name: &str) -> Result<(), OpError> {
        if caller.asks_nobody() || name.is_empty() {
            return Ok(());
        }
        match self.node().registry.named(name).await? {
            Some(found) => caller.must(ownership(&found), Access::Admin, name),
            None => Ok(()),
        }
    }

    /// The same of what was made, or was there: somebody else may have made it meanwhile.
    pub(super) async fn made_by(
        &self,
        caller: &Caller,
        made: uuid::Uuid,
    ) -> Result<String, OpError> {
        self.allowed(caller, &made.to_string(), Access::Admin)
            .await?;
        Ok(made.to_string())
    }
}

/// Whose something is.
pub(super) fn ownership(found: &Found) -> Option<&OwnershipRecord> {
    match found {
        Found::Volume(v) => v.record.ownership.as_ref(),
        Found::Snapshot(s) => s.record.ownership.as_ref(),
    }
}

/// Of these, those that the caller may look at.
pub(super) fn seen_by(caller: &Caller, mut snapshots: Vec<SnapshotRecord>) -> Vec<SnapshotRecord> {
    snapshots.retain(|s| caller.may(s.ownership.as_ref(), Access::Read));
    snapshots
}

fn access(field: &str, number: i32) -> Result<Access, OpError> {
    match AccessType::try_from(number) {
        Ok(AccessType::Read) => Ok(Access::Read),
        Ok(AccessType::Write) => Ok(Access::Write),
        Ok(AccessType::Admin) => Ok(Access::Admin),
        Err(_) => Err(OpError::invalid(field, format!("has no access {number}"))),
    }
}

fn number(access: Access) -> i32 {
    let access = match access {
        Access::Read => AccessType::Read,
        Access::Write => AccessType::Write,
        Access::Admin => AccessType::Admin,
    };
    access.into()
}

/// As it is kept.
pub(super) fn record(asked: Ownership) -> Result<OwnershipRecord, OpError> {
    let acls = asked.acls.unwrap_or_default();
    let list = |field: &str, names: HashMap<String, i32>| {
        let field = format!("spec.ownership.acls.{field}");
        let names = names.into_iter();
        let names = names.map(|(name, number)| Ok((name, access(&field, number)?)));
        names.collect::<Result<BTreeMap<_, _>, OpError>>()
    };
    let public = acls.public;
    let public = public.map(|p| access("spec.ownership.acls.public", p.r#type));
    Ok(OwnershipRecord {
        owner: asked.owner,
        acls: Acls {
            groups: list("groups", acls.groups)?,
            collaborators: list("collaborators", acls.collaborators)?,
            public: public.transpose()?,
        },
    })
}

/// As it is shown.
pub(super) fn shown(record: &OwnershipRecord) -> Ownership {
    let list = |names: &BTreeMap<String, Access>| {
        let names = names.iter();
        names.map(|(name, a)| (name.clone(), number(*a))).collect()
    };
    let acls = &record.acls;
    let shared = (acls != &Acls::default()).then(|| AccessControl {
        groups: list(&acls.groups),
        collaborators: list(&acls.collaborators),
        public: acls
            .public
            .map(|a| PublicAccessControl { r#type: number(a) }),
    });
    Ownership {
        owner: record.owner.clone(),
        acls: shared,
    }
}

/// Whether something is owned so, or shared with one of those that are named.
pub(super) fn matches(filter: &OwnershipRecord, of: Option<&OwnershipRecord>) -> bool {
    let Some(of) = of else { return false };
    let common = |a: &BTreeMap<String, Access>, b: &BTreeMap<String, Access>| {
        a.keys().any(|name| b.contains_key(name))
    };
    (!filter.owner.is_empty() && filter.owner == of.owner)
        || common(&filter.acls.groups, &of.acls.groups)
        || common(&filter.acls.collaborators, &of.acls.collaborators)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Ownership {
        let list = |names: &[(&str, i32)]| {
            let names = names.iter();
            names.map(|(n, a)| ((*n).to_owned(), *a)).collect()
        };
        Ownership {
            owner: "ann".into(),
            acls: Some(AccessControl {
                groups: list(&[("dev", 0), ("ops", 2)]),
                collaborators: list(&[("bob", 1)]),
                public: Some(PublicAccessControl { r#type: 0 }),
            }),
        }
    }

    #[test]
    fn what_is_kept_is_what_was_asked_for() {
        let kept = record(asked()).unwrap();
        assert_eq!(shown(&kept), asked());
        assert_eq!(
            kept.acls.public,
            Some(Access::Read),
            "read is there, not absent"
        );
        let only = Ownership {
            owner: "ann".into(),
            acls: None,
        };
        assert_eq!(shown(&record(only.clone()).unwrap()), only);
        let mut wrong = asked();
        wrong.acls.as_mut().unwrap().groups.insert("x".into(), 3);
        let error = record(wrong).unwrap_err().to_string();
        assert!(error.contains("spec.ownership.acls.groups"), "{error}");
    }

    #[test]
    fn a_filter_finds_an_owner_or_whoever_it_is_shared_with() {
        let of = record(asked()).unwrap();
        let by = |owner: &str, groups: &[&str], users: &[&str]| {
            let list = |names: &[&str]| {
                let names = names.iter();
                names.map(|n| ((*n).to_owned(), Access::Read)).collect()
            };
            OwnershipRecord {
                owner: owner.into(),
                acls: Acls {
                    groups: list(groups),
                    collaborators: list(users),
                    public: None,
                },
            }
        };
        assert!(matches(&by("ann", &[], &[]), Some(&of)));
        assert!(matches(&by("joe", &["ops"], &[]), Some(&of)));
        assert!(matches(&by("", &["x"], &["bob"]), Some(&of)));
        assert!(!matches(&by("bob", &["bob"], &["ann"]), Some(&of)));
        assert!(!matches(&by("", &[], &[]), Some(&of)));
        assert!(!matches(&by("ann", &[], &[]), None));
    }
}
