//! `keelctl volume access …`: whose a volume is, and who else may do what with it (`docs/auth.md`, Owners).
use crate::client::{Client, Volume};
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts};
use clap::{Args, Subcommand, ValueEnum};
use keelblock_api::openstorage as sdk;
use sdk::ownership::{AccessControl, AccessType, PublicAccessControl};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Whose it is, and whom it is shared with.
    Show {
        /// Name or id.
        volume: String,
    },
    /// Share it with these instead of those that there are; without any, with nobody.
    Update(Update),
}

/// What may be done; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Access {
    /// Look at it, take snapshots, clone.
    Read,
    /// Attach, change, set back.
    Write,
    /// Delete, share.
    Admin,
}

#[derive(Debug, Args)]
pub struct Update {
    /// Name or id.
    volume: String,
    /// A group and what it may, like dev=read (repeatable); `*` is any.
    #[arg(long = "group", value_name = "NAME=ACCESS", value_parser = shared)]
    groups: Vec<(String, Access)>,
    /// A user and what that one may, like bob=write (repeatable); `*` is any.
    #[arg(long = "user", value_name = "NAME=ACCESS", value_parser = shared)]
    users: Vec<(String, Access)>,
    /// What everybody may, also without a token.
    #[arg(long, value_name = "ACCESS", value_enum)]
    public: Option<Access>,
    /// Give it to this user; only for who is in group `*`.
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
}

fn shared(text: &str) -> Result<(String, Access), String> {
    let wrong = || format!("`{text}`: write NAME=ACCESS; ACCESS is read, write or admin");
    let (name, access) = text.rsplit_once('=').ok_or_else(wrong)?;
    match Access::from_str(access, true) {
        Ok(access) if !name.is_empty() => Ok((name.into(), access)),
        _ => Err(wrong()),
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

fn word(number: i32) -> &'static str {
    match AccessType::try_from(number) {
        Ok(AccessType::Read) => "read",
        Ok(AccessType::Write) => "write",
        Ok(AccessType::Admin) => "admin",
        Err(_) => "?",
    }
}

fn asked(update: &Update) -> sdk::Ownership {
    let list = |names: &[(String, Access)]| -> HashMap<String, i32> {
        let names = names.iter();
        names.map(|(n, a)| (n.clone(), number(*a))).collect()
    };
    sdk::Ownership {
        owner: update.owner.clone().unwrap_or_default(),
        acls: Some(AccessControl {
            groups: list(&update.groups),
            collaborators: list(&update.users),
            public: update
                .public
                .map(|a| PublicAccessControl { r#type: number(a) }),
        }),
    }
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    let name = match command {
        Command::Show { volume } => volume,
        Command::Update(update) => {
            let spec = sdk::VolumeSpecUpdate {
                ownership: Some(asked(&update)),
                ..Default::default()
            };
            let request = sdk::SdkVolumeUpdateRequest {
                volume_id: update.volume.clone(),
                spec: Some(spec),
                ..Default::default()
            };
            let what = format!("share volume {}", update.volume);
            let set = client.volumes.update(request).await;
            set.map_err(|s| Failure::from_status(what, &s))?;
            if update.owner.is_some() {
                // It may be another's now, who may not show it.
                let text = format!("Volume {} is given away.", update.volume);
                return Ok(Answer::new(json!({ "volume": update.volume }), text));
            }
            update.volume
        }
    };
    Ok(shown(&client.volume(&name).await?))
}

fn shown(volume: &Volume) -> Answer {
    let of = volume.spec().ownership.unwrap_or_default();
    let acls = of.acls.unwrap_or_default();
    let words = |names: HashMap<String, i32>| -> BTreeMap<String, &'static str> {
        let names = names.into_iter();
        names.map(|(name, access)| (name, word(access))).collect()
    };
    let (groups, users) = (words(acls.groups), words(acls.collaborators));
    let public = acls.public.map(|p| word(p.r#type));
    let list = |names: &BTreeMap<String, &str>| {
        let names: Vec<_> = names.iter().map(|(n, a)| format!("{n}={a}")).collect();
        match names.is_empty() {
            true => "-".into(),
            false => names.join(", "),
        }
    };
    let owner = match of.owner.as_str() {
        "" => "everybody".into(),
        owner => owner.to_owned(),
    };
    let text = facts(&[
        ("Volume", volume.name.clone()),
        ("Owner", owner),
        ("Groups", list(&groups)),
        ("Users", list(&users)),
        ("Everybody", public.unwrap_or("-").into()),
    ]);
    let data = json!({
        "volume": volume.name, "id": volume.id, "owner": of.owner, "groups": groups, "users": users, "public": public,
    });
    Answer::new(data, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_what_is_a_name_and_an_access() {
        assert_eq!(shared("dev=read"), Ok(("dev".into(), Access::Read)));
        assert_eq!(shared("a=b=Admin"), Ok(("a=b".into(), Access::Admin)));
        for bad in ["", "dev", "dev=", "=read", "dev=all"] {
            assert!(shared(bad).is_err(), "{bad}");
        }
        let update = Update {
            volume: "v".into(),
            groups: vec![("dev".into(), Access::Read)],
            users: vec![("bob".into(), Access::Write)],
            public: None,
            owner: None,
        };
        let acls = asked(&update).acls.unwrap();
        assert_eq!(word(acls.groups["dev"]), "read");
        assert_eq!(word(acls.collaborators["bob"]), "write");
        assert_eq!((acls.public, word(7)), (None, "?"));
    }
}
