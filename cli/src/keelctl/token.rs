//! `keelctl cluster token …`.
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::{Answer, facts, table};
use crate::time::{parse_interval, show_time};
use clap::{Args, Subcommand};
use keelblock_api::admin;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Since when the cluster has its token, and which were before; not the token, which only those know who were told.
    Show,
    /// Gives the cluster another token, and says it once. Members are not affected; nodes that join need it.
    Rotate(Rotate),
}

#[derive(Debug, Args)]
pub struct Rotate {
    /// The first line of this file, instead of one that is made.
    #[arg(long, value_name = "FILE")]
    new_token_file: Option<PathBuf>,
    /// Nodes may still join with the one before for so long, like 30m, in whole minutes; without it they may not.
    #[arg(long, value_name = "TIME", value_parser = parse_grace)]
    grace: Option<u64>,
}

fn parse_grace(text: &str) -> std::result::Result<u64, String> {
    let seconds = parse_interval(text)?;
    match seconds % 60 {
        0 => Ok(seconds / 60),
        _ => Err(format!(
            "`{text}` is not in whole minutes: write 30m, 2h, 1d"
        )),
    }
}

pub async fn run(client: &mut Client, command: Command) -> Result<Answer> {
    match command {
        Command::Show => show(client).await,
        Command::Rotate(args) => rotate(client, args).await,
    }
}

fn data(token: &admin::ClusterTokenReply) -> Value {
    let former: Vec<_> = token
        .former
        .iter()
        .map(|f| json!({ "since_unix_ms": f.since_unix_ms, "until_unix_ms": f.until_unix_ms }))
        .collect();
    json!({ "since_unix_ms": token.since_unix_ms, "former": former })
}

fn text(token: &admin::ClusterTokenReply) -> String {
    let since = match token.since_unix_ms {
        0 => "none: the first node that is started with one sets it".into(),
        since => format!("since {}", show_time(since)),
    };
    let mut text = facts(&[("Cluster token", since)]);
    if !token.former.is_empty() {
        let rows = token.former.iter().map(|f| {
            let until = match f.until_unix_ms {
                0 => "members only".into(),
                until => show_time(until),
            };
            vec![show_time(f.since_unix_ms), until]
        });
        text += "\n";
        text += &table(&["FORMER TOKEN OF", "NODES MAY JOIN UNTIL"], rows);
    }
    text
}

async fn show(client: &mut Client) -> Result<Answer> {
    let reply = client.admin.cluster_token(admin::ClusterTokenRequest {});
    let reply = reply.await;
    let reply = reply.map_err(|s| Failure::from_status("look at the cluster's token", &s))?;
    let token = reply.into_inner();
    Ok(Answer::new(data(&token), text(&token)))
}

async fn rotate(client: &mut Client, args: Rotate) -> Result<Answer> {
    let what = "change the cluster's token";
    let said = match &args.new_token_file {
        None => String::new(),
        Some(path) => {
            let read = std::fs::read_to_string(path);
            let read = read.map_err(|error| Failure::Failed {
                what: what.into(),
                why: format!("{} cannot be read: {error}", path.display()),
            })?;
            let line = read.lines().next().unwrap_or_default();
            if line.is_empty() {
                return Err(Failure::Usage(format!(
                    "the first line of {} is empty: it is to be the token",
                    path.display()
                )));
            }
            line.to_owned()
        }
    };
    let request = admin::RotateTokenRequest {
        token: said,
        grace_minutes: args.grace.unwrap_or(0),
    };
    let reply = client.admin.rotate_token(request).await;
    let reply = reply
        .map_err(|s| Failure::from_status(what, &s))?
        .into_inner();
    let now = reply.now.clone().unwrap_or_default();
    let mut answer = data(&now);
    let mut shown = text(&now);
    if !reply.token.is_empty() {
        answer["token"] = json!(reply.token);
        shown += &format!(
            "\nThe new token, which is not told again:\n{}\n",
            reply.token
        );
    }
    shown += "\nNodes that join need it (--cluster-token-file). Members go on as they are; give it to them before they are made anew.\n";
    Ok(Answer::new(answer, shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_is_in_whole_minutes() {
        assert_eq!(parse_grace("30m"), Ok(30));
        assert_eq!(parse_grace("2h"), Ok(120));
        assert_eq!(parse_grace("120"), Ok(2), "seconds");
        assert!(parse_grace("90s").unwrap_err().contains("whole minutes"));
        assert!(parse_grace("soon").is_err());
    }

    #[test]
    fn what_is_shown_says_who_may_still_join() {
        let none = text(&admin::ClusterTokenReply::default());
        assert!(none.contains("none"), "{none}");
        let former = |since_unix_ms, until_unix_ms| admin::FormerToken {
            since_unix_ms,
            until_unix_ms,
        };
        let shown = text(&admin::ClusterTokenReply {
            since_unix_ms: 86_400_000,
            former: vec![former(1000, 0), former(500, 172_800_000)],
        });
        for has in ["since 1970-01-02", "members only", "1970-01-03 00:00:00"] {
            assert!(shown.contains(has), "{shown}");
        }
    }
}
