//! Roles: those that are always there, and those that people made, in the KVDB under `roles/`.
use super::rules::{Method, RuleRecord, allow, check};
use crate::error::OpError;
use crate::node::Node;
use crate::records::encode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Everything.
pub const ADMIN: &str = "system.admin";
/// What only shows.
pub const VIEW: &str = "system.view";
/// Volumes, from their beginning to their end.
pub const USER: &str = "system.user";
/// Who brings no token.
pub const GUEST: &str = "system.guest";
/// What the names of system roles begin with.
const SYSTEM: &str = "system.";
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// Methods of the admin service that change nothing.
const ADMIN_SHOWS: [&str; 14] = [
    "nodestatus",
    "volumestatus",
    "connectioninfo",
    "listmembers",
    "locatevolume",
    "explainplacement",
    "provisionstatus",
    "clusteroptions",
    "planrebalance",
    "rebalancestatus",
    "listtrash",
    "kvdbstatus",
    "diffvolume",
    "getscan",
];
/// Methods of the admin service that are about volumes, and look at who may use them.
const ADMIN_VOLUMES: [&str; 12] = [
    "volumestatus",
    "connectioninfo",
    "locatevolume",
    "explainplacement",
    "setallowedhosts",
    "createsnapshots",
    "diffvolume",
    "listtrash",
    "restoretrash",
    "purgetrash",
    "updatereplicas",
    "cancelupdatereplicas",
];

/// A role as it is kept: key `roles/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleRecord {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub rules: Vec<RuleRecord>,
}

fn rule(services: &[&str], apis: &[&str]) -> RuleRecord {
    let owned = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
    RuleRecord {
        services: owned(services),
        apis: owned(apis),
    }
}

/// The rules of a system role, of `system.guest` as it is at first; `None`: it is none.
fn system_rules(name: &str) -> Option<Vec<RuleRecord>> {
    let shows = rule(&["cluster", "node"], &["inspect*", "enumerate*"]);
    let rules = match name {
        ADMIN => vec![rule(&["*"], &["*"])],
        VIEW => vec![
            rule(
                &["*"],
                &[
                    "*enumerate*",
                    "inspect*",
                    "stats",
                    "status",
                    "validate",
                    "capacityusage",
                    "watch",
                ],
            ),
            rule(&["identity"], &["*"]),
            rule(&["admin"], &ADMIN_SHOWS),
        ],
        USER => vec![
            rule(
                &[
                    "volume",
                    "cloudbackup",
                    "credentials",
                    "objectstore",
                    "schedulepolicy",
                    "mountattach",
                    "migrate",
                ],
                &["*"],
            ),
            shows,
            rule(&["identity"], &["*"]),
            rule(&["policy"], &["*enumerate*", "*inspect*"]),
            rule(&["admin"], &ADMIN_VOLUMES),
        ],
        GUEST => vec![
            rule(&["mountattach", "volume", "cloudbackup", "migrate"], &["*"]),
            rule(&["identity"], &["version"]),
            shows,
        ],
        _ => return None,
    };
    Some(rules)
}

/// The rules of a system role that nobody can change.
fn fixed_rules(name: &str) -> Option<Vec<RuleRecord>> {
    system_rules(name).filter(|_| name != GUEST)
}

/// That this can be a role's name.
fn check_name(name: &str) -> Result<(), OpError> {
    if name.is_empty() {
        return Err(OpError::Missing {
            field: "role.name",
            hint: "the name of a role",
        });
    }
    let good = |c: char| c.is_ascii_graphic() && c != '/';
    if name.len() > NAME_BYTES_MAX || !name.chars().all(good) {
        let why = format!(
            "must be at most {NAME_BYTES_MAX} printable ASCII characters, without `/` and blanks"
        );
        return Err(OpError::invalid("role.name", why));
    }
    Ok(())
}

/// That a role can be made, changed or deleted by people.
fn check_changeable(name: &str, guest_too: bool) -> Result<(), OpError> {
    check_name(name)?;
    if !name.starts_with(SYSTEM) || (guest_too && name == GUEST) {
        return Ok(());
    }
    let why = match name {
        GUEST => format!("{GUEST} is always there: it can be updated (`keelctl role update`)"),
        _ => format!(
            "names that begin with {SYSTEM} are of roles that are as they are: take another one"
        ),
    };
    Err(OpError::invalid("role.name", why))
}

fn no_role(name: &str) -> OpError {
    OpError::NotFound {
        kind: "role",
        name: name.into(),
    }
}

impl Node {
    /// Makes a role, once: it is not for a second caller to believe that it is theirs.
    ///
    /// # Errors
    /// [`OpError::Exists`] if there is one of that name, whatever its rules; what cannot be a role.
    pub async fn create_role(&self, role: RoleRecord) -> Result<RoleRecord, OpError> {
        check_changeable(&role.name, false)?;
        check(&role.rules)?;
        let key = self.registry.keys().role(&role.name);
        let new = vec![(key.clone(), encode(&role))];
        if self.registry.make(new).await? {
            return Ok(role);
        }
        match self.registry.get::<RoleRecord>(&key).await? {
            Some(found) => Err(OpError::Exists {
                name: format!("role {}", role.name),
                what: match found.record.rules == role.rules {
                    true => "these rules already".into(),
                    false => "other rules: update it instead".into(),
                },
            }),
            None => Err(OpError::Contended { what: key }),
        }
    }

    /// Gives a role other rules. `system.guest` is always there.
    ///
    /// # Errors
    /// [`OpError::NotFound`]; what cannot be a role.
    pub async fn update_role(&self, role: RoleRecord) -> Result<RoleRecord, OpError> {
        check_changeable(&role.name, true)?;
        check(&role.rules)?;
        let key = self.registry.keys().role(&role.name);
        if role.name == GUEST {
            self.registry.put(&key, &role).await?;
            return Ok(role);
        }
        let missing = || no_role(&role.name);
        let change = |found: &mut RoleRecord| {
            let other = *found != role;
            found.clone_from(&role);
            Ok(other)
        };
        self.registry.change(&key, missing, change).await
    }

    /// The role of that name.
    ///
    /// # Errors
    /// [`OpError::NotFound`].
    pub async fn role(&self, name: &str) -> Result<RoleRecord, OpError> {
        check_name(name)?;
        self.role_if_any(name).await?.ok_or_else(|| no_role(name))
    }

    async fn role_if_any(&self, name: &str) -> Result<Option<RoleRecord>, OpError> {
        let system = |rules| RoleRecord {
            name: name.into(),
            rules,
        };
        if let Some(rules) = fixed_rules(name) {
            return Ok(Some(system(rules)));
        }
        let key = self.registry.keys().role(name);
        let kept = self.registry.get::<RoleRecord>(&key).await?;
        let kept = kept.map(|k| k.record);
        Ok(kept.or_else(|| system_rules(name).map(system)))
    }

    /// Names of all roles, in order.
    ///
    /// # Errors
    /// Those of the KVDB.
    pub async fn role_names(&self) -> Result<Vec<String>, OpError> {
        let prefix = self.registry.keys().roles();
        let kept = self.registry.list::<RoleRecord>(&prefix).await?;
        let mut names: BTreeSet<String> = kept.into_iter().map(|r| r.record.name).collect();
        names.extend([ADMIN, VIEW, USER, GUEST].map(str::to_owned));
        Ok(names.into_iter().collect())
    }

    /// Deletes a role; one that is not there, too.
    ///
    /// # Errors
    /// [`OpError::Invalid`] of a system role.
    pub async fn delete_role(&self, name: &str) -> Result<(), OpError> {
        check_changeable(name, false)?;
        let key = self.registry.keys().role(name);
        Ok(self.registry.kv().delete(key).await.map(drop)?)
    }

    /// Whether one of these roles allows a method.
    ///
    /// # Errors
    /// The KVDB, if that must be asked.
    pub(super) async fn roles_allow(
        &self,
        roles: &[String],
        method: &Method,
    ) -> Result<bool, OpError> {
        // Nothing is asked for what is known.
        let mut fixed = roles.iter().filter_map(|name| fixed_rules(name));
        if fixed.any(|rules| allow(&rules, method)) {
            return Ok(true);
        }
        let others = roles
            .iter()
            .filter(|name| fixed_rules(name).is_none() && check_name(name).is_ok());
        for name in others.collect::<BTreeSet<_>>() {
            let role = self.role_if_any(name).await?;
            if role.is_some_and(|role| allow(&role.rules, method)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_api::DESCRIPTORS;
    use prost_reflect::DescriptorPool;

    fn may(role: &str, path: &str) -> bool {
        allow(
            &system_rules(role).unwrap(),
            &Method::of_path(path).unwrap(),
        )
    }

    #[test]
    fn system_roles_allow_what_they_are_for() {
        let sdk = |method: &str| format!("/openstorage.api.OpenStorage{method}");
        for (method, view, user, guest) in [
            ("Volume/Create", false, true, true),
            ("Volume/Inspect", true, true, true),
            ("Volume/InspectWithFilters", true, true, true),
            ("Volume/SnapshotEnumerateWithFilters", true, true, true),
            ("Volume/CapacityUsage", true, true, true),
            ("MountAttach/Attach", false, true, true),
            ("SchedulePolicy/Delete", false, true, false),
            ("Node/InspectCurrent", true, true, true),
            ("Node/DrainAttachments", false, false, false),
            ("Identity/Capabilities", true, true, false),
            ("Identity/Version", true, true, true),
            ("Role/Enumerate", true, false, false),
            ("Role/Update", false, false, false),
            ("Pool/Resize", false, false, false),
            ("Watch/Watch", true, false, false),
            ("Alerts/EnumerateWithFilters", true, false, false),
        ] {
            let path = sdk(method);
            let found = [VIEW, USER, GUEST].map(|role| may(role, &path));
            assert_eq!(found, [view, user, guest], "{method}");
            assert!(may(ADMIN, &path));
        }
        let admin = "/keelblock.admin.v1.Admin/";
        for (method, view, user) in [
            ("NodeStatus", true, false),
            ("ConnectionInfo", true, true),
            ("SetAllowedHosts", false, true),
            ("BackupKvdb", false, false),
            ("CollectDiags", false, false),
            ("TrashOptions", false, false),
        ] {
            let path = format!("{admin}{method}");
            assert_eq!(
                (may(VIEW, &path), may(USER, &path)),
                (view, user),
                "{method}"
            );
            assert!(!may(GUEST, &path), "{method}");
        }
    }

    #[test]
    fn methods_that_roles_name_are_there() {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let service = pool
            .get_service_by_name("keelblock.admin.v1.Admin")
            .unwrap();
        let there: Vec<_> = service
            .methods()
            .map(|m| m.name().to_ascii_lowercase())
            .collect();
        for name in ADMIN_SHOWS.iter().chain(&ADMIN_VOLUMES) {
            assert!(there.iter().any(|m| m == name), "{name}");
        }
    }

    #[test]
    fn system_roles_are_rules_and_only_guest_changes() {
        for name in [ADMIN, VIEW, USER, GUEST] {
            check(&system_rules(name).unwrap()).unwrap();
            assert!(check_changeable(name, false).is_err());
            assert_eq!(check_changeable(name, true).is_ok(), name == GUEST);
        }
        assert!(check_changeable("system.other", true).is_err());
        assert!(check_changeable("ops", false).is_ok());
        for bad in ["", "a/b", "a b", "ü", "a\n", &"x".repeat(101)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
