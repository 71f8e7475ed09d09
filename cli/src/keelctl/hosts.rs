//! `keelctl volume hosts …`: which hosts may connect to a volume.
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::Answer;
use clap::Subcommand;
use keelblock_api::admin;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Which hosts may connect.
    List {
        /// Name or id.
        volume: String,
    },
    /// Let hosts connect, beside those that already may.
    Allow {
        /// Name or id.
        volume: String,
        /// Host NQNs (`/etc/nvme/hostnqn` of the host).
        #[arg(required_unless_present = "any", conflicts_with = "any")]
        hosts: Vec<String>,
        /// Let every host connect.
        #[arg(long)]
        any: bool,
    },
    /// Let hosts connect no longer; those that are connected lose the volume.
    Deny {
        /// Name or id.
        volume: String,
        /// Host NQNs.
        #[arg(required_unless_present = "any", conflicts_with = "any")]
        hosts: Vec<String>,
        /// No host at all.
        #[arg(long)]
        any: bool,
    },
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::List { volume } => {
            let volume = client.volume(&volume).await?;
            answer(client, &volume.id).await
        }
        Command::Allow {
            volume, any: true, ..
        } => set(client, &volume, |_| Ok((Vec::new(), true))).await,
        Command::Deny {
            volume, any: true, ..
        } => set(client, &volume, |_| Ok((Vec::new(), false))).await,
        Command::Allow {
            volume,
            hosts,
            any: false,
        } => {
            set(client, &volume, |info| {
                let mut list = info.allowed_hosts.clone();
                list.extend(
                    hosts
                        .into_iter()
                        .filter(|h| !info.allowed_hosts.contains(h)),
                );
                Ok((list, false))
            })
            .await
        }
        Command::Deny {
            volume,
            hosts,
            any: false,
        } => set(client, &volume, |info| without(info, &hosts)).await,
    }
}

/// The list without `hosts`. One host cannot be taken out of "any".
fn without(info: &admin::ConnectionInfoReply, hosts: &[String]) -> Result<(Vec<String>, bool)> {
    if info.any_host {
        return Err(Failure::Usage(
            "any host may connect to this volume. `keelctl volume hosts allow VOLUME HOST…` names those that shall, and so shuts \
             out the others"
                .into(),
        ));
    }
    if let Some(stranger) = hosts.iter().find(|h| !info.allowed_hosts.contains(h)) {
        return Err(Failure::NotFound {
            what: "deny hosts".into(),
            why: format!("{stranger} is not on the list"),
        });
    }
    Ok((
        info.allowed_hosts
            .iter()
            .filter(|h| !hosts.contains(h))
            .cloned()
            .collect(),
        false,
    ))
}

async fn set(
    client: &mut Client,
    volume: &str,
    change: impl FnOnce(&admin::ConnectionInfoReply) -> Result<(Vec<String>, bool)>,
) -> Result<Answer> {
    let volume = client.volume(volume).await?;
    let (host_nqns, any) = change(&client.connection(&volume.id).await?)?;
    let request = admin::SetAllowedHostsRequest {
        volume: volume.id.clone(),
        host_nqns,
        any,
    };
    let reply = client.admin.set_allowed_hosts(request).await;
    reply.map_err(|s| {
        Failure::from_status(format!("set the hosts of volume {}", volume.name), &s)
    })?;
    answer(client, &volume.id).await
}

async fn answer(client: &mut Client, id: &str) -> Result<Answer> {
    let info = client.connection(id).await?;
    let data = json!({ "volume_id": info.volume_id, "any_host": info.any_host, "allowed_hosts": info.allowed_hosts });
    Ok(Answer::new(data, shown(&info)))
}

/// The list in words.
pub fn shown(info: &admin::ConnectionInfoReply) -> String {
    match (info.any_host, info.allowed_hosts.is_empty()) {
        (true, _) => "any".into(),
        (false, true) => "none".into(),
        (false, false) => info.allowed_hosts.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(hosts: &[&str], any_host: bool) -> admin::ConnectionInfoReply {
        let allowed_hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
        admin::ConnectionInfoReply {
            allowed_hosts,
            any_host,
            ..Default::default()
        }
    }

    #[test]
    fn denying_takes_only_the_named_host_off_the_list() {
        assert_eq!(
            without(&list(&["a", "b"], false), &["a".into()]).unwrap(),
            (vec!["b".into()], false)
        );
    }

    #[test]
    fn denying_a_host_that_is_not_listed_is_not_silent() {
        assert_eq!(
            without(&list(&["a"], false), &["b".into()])
                .unwrap_err()
                .exit_code(),
            3
        );
        assert_eq!(
            without(&list(&[], true), &["b".into()])
                .unwrap_err()
                .exit_code(),
            2
        );
    }
}
