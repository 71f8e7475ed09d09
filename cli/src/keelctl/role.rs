//! `keelctl role …`: which methods of which services may be called, where a token is asked for (`docs/auth.md`).
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, table};
use clap::Subcommand;
use keelblock_api::openstorage as sdk;
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a role.
    Create {
        /// Its name.
        name: String,
        /// Services and their methods, like volume,mountattach:*,!delete (repeatable). `*` before or behind a name is anything, `!` before it denies.
        #[arg(long = "rule", value_name = "SERVICES:APIS", required = true, value_parser = rule)]
        rules: Vec<sdk::SdkRule>,
    },
    /// Give a role other rules, instead of all that it has. Of the system roles only system.guest can have others: !*:!* lets nobody in without a token.
    Update {
        /// Its name.
        name: String,
        /// Services and their methods, as of `create`.
        #[arg(long = "rule", value_name = "SERVICES:APIS", required = true, value_parser = rule)]
        rules: Vec<sdk::SdkRule>,
    },
    /// Names of all roles.
    List,
    /// What a role allows.
    Inspect {
        /// Its name.
        name: String,
    },
    /// Delete roles; tokens that name them are allowed nothing by them.
    Delete {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

fn rule(text: &str) -> Result<sdk::SdkRule, String> {
    let wrong = || format!("`{text}`: write SERVICES:APIS, like volume,mountattach:*,!delete");
    let (services, apis) = text.split_once(':').ok_or_else(wrong)?;
    let names = |list: &str| -> Vec<String> { list.split(',').map(str::to_owned).collect() };
    let (services, apis) = (names(services), names(apis));
    let empty = |name: &String| name.is_empty() || name.contains(':');
    match services.iter().chain(&apis).any(empty) {
        true => Err(wrong()),
        false => Ok(sdk::SdkRule { services, apis }),
    }
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Create { name, rules } => {
            let role = Some(sdk::SdkRole {
                name: name.clone(),
                rules,
            });
            let request = sdk::SdkRoleCreateRequest { role };
            let made = client.roles.create(request).await;
            made.map_err(|s| Failure::from_status(format!("create role {name}"), &s))?;
            Ok(done(&name, "is made"))
        }
        Command::Update { name, rules } => {
            let role = Some(sdk::SdkRole {
                name: name.clone(),
                rules,
            });
            let request = sdk::SdkRoleUpdateRequest { role };
            let made = client.roles.update(request).await;
            made.map_err(|s| Failure::from_status(format!("update role {name}"), &s))?;
            Ok(done(&name, "has these rules"))
        }
        Command::List => list(client).await,
        Command::Inspect { name } => inspect(client, name).await,
        Command::Delete { names } => {
            for name in &names {
                let request = sdk::SdkRoleDeleteRequest { name: name.clone() };
                let deleted = client.roles.delete(request).await;
                deleted.map_err(|s| Failure::from_status(format!("delete role {name}"), &s))?;
            }
            Ok(done(&names.join(", "), "is no more"))
        }
    }
}

fn done(name: &str, what: &str) -> Answer {
    Answer::new(json!({ "role": name }), format!("Role {name} {what}."))
}

async fn list(client: &mut Client) -> Result<Answer> {
    let reply = client
        .roles
        .enumerate(sdk::SdkRoleEnumerateRequest {})
        .await;
    let names = reply
        .map_err(|s| Failure::from_status("list roles", &s))?
        .into_inner()
        .names;
    let rows = names.iter().map(|name| vec![name.clone()]);
    let text = table(&["ROLE"], rows);
    Ok(Answer::new(names, text))
}

async fn inspect(client: &mut Client, name: String) -> Result<Answer> {
    let what = format!("inspect role {name}");
    let request = sdk::SdkRoleInspectRequest { name };
    let reply = client.roles.inspect(request).await;
    let reply = reply.map_err(|s| Failure::from_status(what, &s))?;
    let role = reply.into_inner().role.unwrap_or_default();
    let rules: Vec<Value> = role
        .rules
        .iter()
        .map(|r| json!({ "services": r.services, "apis": r.apis }))
        .collect();
    let rows = role
        .rules
        .iter()
        .map(|r| vec![r.services.join(", "), r.apis.join(", ")]);
    let text = table(&["SERVICES", "APIS"], rows);
    let data = json!({ "name": role.name, "rules": rules });
    Ok(Answer::new(data, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_services_and_apis() {
        let read = rule("volume,mountattach:*,!delete").unwrap();
        assert_eq!(read.services, ["volume", "mountattach"]);
        assert_eq!(read.apis, ["*", "!delete"]);
        assert!(rule("!*:!*").is_ok());
        for bad in ["", "volume", ":", "volume:", ":create", "a,:b", "a:b:c"] {
            assert!(rule(bad).is_err(), "{bad}");
        }
    }
}
