//! Owners of volumes and snapshots, and who else may do what with them (`docs/auth.md`, Owners).
use super::caller::{Caller, User};
use crate::error::OpError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Whoever is in this group may do anything with any volume; in a list of groups or users it is all of them.
const ALL: &str = "*";
/// Most names of a list.
const NAMES_MAX: usize = 64;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// What may be done; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Look at it, take snapshots of it, clone it.
    Read,
    /// Attach, change, set back.
    Write,
    /// Delete it, say who may do what.
    Admin,
}

impl Access {
    /// What is done with it, in words.
    fn verb(self) -> &'static str {
        match self {
            Self::Read => "look at",
            Self::Write => "change or attach",
            Self::Admin => "delete or share",
        }
    }
}

/// Who may do what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acls {
    /// By group; `*` is any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Access>,
    /// By user; `*` is any that has a token.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub collaborators: BTreeMap<String, Access>,
    /// Everybody, also guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<Access>,
}

/// Whose a volume or snapshot is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnershipRecord {
    /// The user; empty: it is everybody's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// Who else.
    #[serde(default)]
    pub acls: Acls,
}

impl User {
    /// Whether it may do anything with any volume.
    fn is_over_all(&self) -> bool {
        self.groups.iter().any(|g| g == ALL)
    }
}

impl Acls {
    /// That these can be.
    fn check(&self) -> Result<(), OpError> {
        for (list, names) in [
            ("groups", &self.groups),
            ("collaborators", &self.collaborators),
        ] {
            let field = format!("spec.ownership.acls.{list}");
            if names.len() > NAMES_MAX {
                let why = format!("has {} names, at most {NAMES_MAX}", names.len());
                return Err(OpError::invalid(field, why));
            }
            let bad = |n: &&String| n.is_empty() || n.len() > NAME_BYTES_MAX;
            if names.keys().any(|n| bad(&n)) {
                let why =
                    format!("has a name that is empty, or of more than {NAME_BYTES_MAX} bytes");
                return Err(OpError::invalid(field, why));
            }
        }
        Ok(())
    }

    /// The most that a user may by any of the lists.
    fn of(&self, user: &User) -> Option<Access> {
        let by_group = user.groups.iter().filter_map(|g| self.groups.get(g));
        let by_name = self.collaborators.get(&user.name);
        let any = [self.groups.get(ALL), self.collaborators.get(ALL)];
        let all = by_group.chain(by_name).chain(any.into_iter().flatten());
        all.copied().max()
    }
}

/// A change of whose a volume is, as somebody asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnershipWish {
    /// Who asks.
    pub caller: Caller,
    /// The new owner; empty: as it is.
    pub owner: String,
    /// Instead of those that there are.
    pub acls: Acls,
}

/// Who asks is not known, so nobody can be the owner.
fn asks_nobody() -> OpError {
    OpError::Unsupported {
        field: "spec.ownership".into(),
        why: " by a node that asks nobody for a token: start keelblock-control with --auth",
    }
}

impl OwnershipWish {
    /// What becomes of it.
    ///
    /// # Errors
    /// [`OpError::Denied`]: who asks may not.
    pub fn of(&self, now: Option<&OwnershipRecord>) -> Result<OwnershipRecord, OpError> {
        if self.caller == Caller::Anybody {
            return Err(asks_nobody());
        }
        self.acls.check()?;
        if !self.caller.may(now, Access::Admin) {
            return Err(OpError::Denied(format!(
                "only the owner of a volume, whom it is shared with as Admin, and group `{ALL}` say whose it is and who may do what, and {} is none of these",
                self.caller.name()
            )));
        }
        let before = now.map(|n| n.owner.as_str()).unwrap_or_default();
        let owner = match self.owner.as_str() {
            "" => before,
            new if new == before || self.caller.is_over_all() => new,
            _ => {
                return Err(OpError::Denied(format!(
                    "only who is in group `{ALL}` gives a volume another owner, and {} is not",
                    self.caller.name()
                )));
            }
        };
        if owner.len() > NAME_BYTES_MAX {
            let why = format!("has more than {NAME_BYTES_MAX} bytes");
            return Err(OpError::invalid("spec.ownership.owner", why));
        }
        Ok(OwnershipRecord {
            owner: owner.into(),
            acls: self.acls.clone(),
        })
    }
}

impl Caller {
    /// Whether it may do anything with any volume.
    fn is_over_all(&self) -> bool {
        match self {
            Self::Anybody | Self::Node => true,
            Self::Guest => false,
            Self::User(user) => user.is_over_all(),
        }
    }

    /// Whether it need not be looked whose a volume is.
    pub fn asks_nobody(&self) -> bool {
        self.is_over_all()
    }

    /// Whether it may do this with what is owned so; `None`: it is everybody's.
    pub fn may(&self, of: Option<&OwnershipRecord>, access: Access) -> bool {
        let Some(of) = of.filter(|o| !o.owner.is_empty()) else {
            return true;
        };
        if self.is_over_all() || of.acls.public.is_some_and(|public| public >= access) {
            return true;
        }
        match self {
            Self::User(user) => {
                user.name == of.owner || of.acls.of(user).is_some_and(|most| most >= access)
            }
            _ => false,
        }
    }

    /// That it may do this with a volume or snapshot of this name.
    ///
    /// # Errors
    /// [`OpError::Denied`].
    pub fn must(
        &self,
        of: Option<&OwnershipRecord>,
        access: Access,
        name: &str,
    ) -> Result<(), OpError> {
        if self.may(of, access) {
            return Ok(());
        }
        tracing::info!(
            user = self.name(),
            volume = name,
            ?access,
            "refused: it is another's"
        );
        Err(OpError::Denied(format!(
            "{} may not {} volume {name}: it is another's; its owner can share it (`keelctl volume access`), with {access:?} access",
            self.name(),
            access.verb()
        )))
    }

    /// Whose a new volume is, that this one makes; as it was asked for.
    ///
    /// # Errors
    /// [`OpError::Invalid`], [`OpError::Denied`]: not by this one.
    pub fn owns_new(
        &self,
        asked: Option<OwnershipRecord>,
    ) -> Result<Option<OwnershipRecord>, OpError> {
        let given = asked.is_some();
        let OwnershipRecord { owner, acls } = asked.unwrap_or_default();
        let user = match self {
            Self::User(user) => user,
            _ if !given => return Ok(None),
            Self::Guest => {
                return Err(OpError::Denied(
                    "spec.ownership: a guest owns nothing; bring a token".into(),
                ));
            }
            Self::Anybody | Self::Node => {
                return Err(asks_nobody());
            }
        };
        acls.check()?;
        if !owner.is_empty() && owner != user.name && !user.is_over_all() {
            return Err(OpError::Denied(format!(
                "spec.ownership.owner: {} cannot make a volume of somebody else's; only group `{ALL}` can",
                user.name
            )));
        }
        let owner = match owner.as_str() {
            "" => user.name.clone(),
            _ => owner,
        };
        Ok(Some(OwnershipRecord { owner, acls }))
    }

    /// Whose a clone is, that this one makes of what is owned so.
    pub fn owns_clone(&self, of: Option<&OwnershipRecord>) -> Option<OwnershipRecord> {
        match self {
            Self::Anybody | Self::Node => of.cloned(),
            Self::Guest => None,
            Self::User(user) => match of {
                Some(of) if of.owner == user.name => Some(of.clone()),
                _ => Some(OwnershipRecord {
                    owner: user.name.clone(),
                    acls: Acls::default(),
                }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn user(name: &str, groups: &[&str]) -> Caller {
        Caller::User(Arc::new(User {
            name: name.into(),
            roles: Vec::new(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        }))
    }

    fn list(names: &[(&str, Access)]) -> BTreeMap<String, Access> {
        names.iter().map(|(n, a)| ((*n).to_owned(), *a)).collect()
    }

    fn anns(groups: &[(&str, Access)], collaborators: &[(&str, Access)]) -> OwnershipRecord {
        OwnershipRecord {
            owner: "ann".into(),
            acls: Acls {
                groups: list(groups),
                collaborators: list(collaborators),
                public: None,
            },
        }
    }

    /// The most that somebody may.
    fn most(caller: &Caller, of: &OwnershipRecord) -> Option<Access> {
        let all = [Access::Admin, Access::Write, Access::Read];
        all.into_iter().find(|a| caller.may(Some(of), *a))
    }

    #[test]
    fn access_is_the_most_that_any_list_gives() {
        use Access::*;
        let of = anns(
            &[("dev", Read), ("ops", Write)],
            &[("bob", Admin), ("eve", Read)],
        );
        for (caller, access) in [
            (user("ann", &[]), Some(Admin)),
            (user("bob", &["dev"]), Some(Admin)),
            (user("eve", &["dev", "ops"]), Some(Write)),
            (user("eve", &[]), Some(Read)),
            (user("joe", &["other"]), None),
            (user("joe", &["*"]), Some(Admin)),
            (user("", &[]), None),
            (Caller::Guest, None),
            (Caller::Node, Some(Admin)),
            (Caller::Anybody, Some(Admin)),
        ] {
            assert_eq!(most(&caller, &of), access, "{caller:?}");
        }
        let any = anns(&[("*", Read)], &[("*", Write)]);
        assert_eq!(most(&user("joe", &[]), &any), Some(Write));
        assert_eq!(most(&Caller::Guest, &any), None, "any user has a token");
        let mut public = anns(&[], &[]);
        public.acls.public = Some(Write);
        assert_eq!(most(&Caller::Guest, &public), Some(Write));
        assert_eq!(most(&user("joe", &[]), &public), Some(Write));
        let nobodys = OwnershipRecord::default();
        assert_eq!(most(&Caller::Guest, &nobodys), Some(Admin));
        assert!(Caller::Guest.may(None, Admin));
    }

    #[test]
    fn a_new_volume_is_of_whoever_makes_it() {
        let ann = user("ann", &[]);
        let made = ann.owns_new(None).unwrap().unwrap();
        assert_eq!(made, anns(&[], &[]));
        let acls = anns(&[("dev", Access::Read)], &[]).acls;
        let asked = |owner: &str, acls: Acls| {
            Some(OwnershipRecord {
                owner: owner.into(),
                acls,
            })
        };
        let shared = ann.owns_new(asked("", acls.clone())).unwrap();
        assert_eq!(shared.unwrap().acls, acls);
        let others = asked("bob", Acls::default());
        assert!(ann.owns_new(others.clone()).is_err());
        let root = user("root", &["*"]).owns_new(others.clone()).unwrap();
        assert_eq!(root.unwrap().owner, "bob");
        assert_eq!(Caller::Guest.owns_new(None).unwrap(), None);
        assert!(Caller::Guest.owns_new(others.clone()).is_err());
        assert_eq!(Caller::Anybody.owns_new(None).unwrap(), None);
        let refused = Caller::Anybody.owns_new(others).unwrap_err().to_string();
        assert!(refused.starts_with("spec.ownership"), "{refused}");
        let empty = Acls {
            groups: list(&[("", Access::Read)]),
            ..Acls::default()
        };
        assert!(ann.owns_new(asked("", empty)).is_err());
    }

    #[test]
    fn a_clone_is_of_whoever_makes_it_and_shared_as_before_only_if_it_was_theirs() {
        let of = anns(&[("dev", Access::Read)], &[]);
        let made = |caller: Caller| caller.owns_clone(Some(&of));
        assert_eq!(made(user("ann", &[])).unwrap(), of);
        let bobs = made(user("bob", &["dev"])).unwrap();
        assert_eq!((bobs.owner.as_str(), bobs.acls), ("bob", Acls::default()));
        assert_eq!(made(Caller::Guest), None);
        assert_eq!(made(Caller::Anybody).unwrap(), of);
        assert_eq!(user("bob", &[]).owns_clone(None).unwrap().owner, "bob");
    }

    #[test]
    fn only_some_may_say_whose_it_is() {
        let of = anns(&[], &[("bob", Access::Admin), ("eve", Access::Write)]);
        let wish = |caller: Caller, owner: &str| {
            let wish = OwnershipWish {
                caller,
                owner: owner.into(),
                acls: Acls::default(),
            };
            wish.of(Some(&of))
        };
        assert_eq!(wish(user("ann", &[]), "").unwrap(), anns(&[], &[]));
        assert_eq!(wish(user("bob", &[]), "ann").unwrap(), anns(&[], &[]));
        assert!(wish(user("eve", &[]), "").is_err());
        assert!(wish(Caller::Guest, "").is_err());
        assert!(wish(Caller::Anybody, "").is_err());
        assert!(
            wish(user("ann", &[]), "bob").is_err(),
            "she cannot give it away"
        );
        let given = wish(user("root", &["*"]), "bob").unwrap();
        assert_eq!(given.owner, "bob");
    }

    fn access() -> impl Strategy<Value = Access> {
        prop::sample::select(vec![Access::Read, Access::Write, Access::Admin])
    }

    proptest! {
        /// Sharing with more never takes anything away, and more access includes less.
        #[test]
        fn access_only_grows(
            groups in prop::collection::btree_map("[ab*]", access(), 0..3),
            users in prop::collection::btree_map("[xy*]", access(), 0..3),
            public in prop::option::of(access()),
            name in "[xyz]", of_groups in prop::collection::vec("[abc]", 0..3), more in access(),
        ) {
            let mut of = OwnershipRecord {
                owner: "ann".into(),
                acls: Acls { groups, collaborators: users, public },
            };
            let groups: Vec<&str> = of_groups.iter().map(String::as_str).collect();
            let caller = user(&name, &groups);
            let before = most(&caller, &of);
            for less in [Access::Read, Access::Write, Access::Admin] {
                prop_assert_eq!(caller.may(Some(&of), less), before.is_some_and(|most| most >= less));
            }
            of.acls.collaborators.entry(name).and_modify(|a| *a = (*a).max(more)).or_insert(more);
            prop_assert_eq!(most(&caller, &of), before.max(Some(more)));
        }
    }
}
