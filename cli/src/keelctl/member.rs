//! What is wanted of nodes: labels, cordon, drain, maintenance, decommission, remove.
use super::progress::LOOK;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::render::Answer;
use clap::{ArgGroup, Args};
use keelblock_api::admin::update_member_request::Change;
use keelblock_api::admin::{
    ListMembersReply, ListMembersRequest, Member, MemberLabels, MemberLoad, UpdateMemberRequest,
};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Args)]
pub struct One {
    /// Id of the node.
    node: String,
}

#[derive(Debug, Args)]
pub struct Label {
    /// Id of the node.
    node: String,
    /// KEY=VALUE sets a label, KEY- takes it away.
    #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = parse_label)]
    labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub struct Maintenance {
    /// Id of the node.
    node: String,
    /// Attachments move away; refused if a volume cannot do without the node.
    #[arg(long, group = "what")]
    enter: bool,
    /// The node takes its part again.
    #[arg(long, group = "what", conflicts_with_all = ["force", "wait"])]
    exit: bool,
    /// Enter even if volumes cannot do without it: they are not served while the machine is away.
    #[arg(long)]
    force: bool,
    /// Stay until nothing is attached there.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub struct Drain {
    /// Id of the node.
    node: String,
    /// End it; the node stays cordoned.
    #[arg(long, conflicts_with = "wait")]
    cancel: bool,
    /// Stay until nothing is attached there.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub struct Decommission {
    /// Id of the node.
    node: String,
    /// Do it without being asked.
    #[arg(long)]
    yes: bool,
    /// Take it back: what was moved stays where it is.
    #[arg(long, conflicts_with_all = ["wait", "yes"])]
    cancel: bool,
    /// Stay until the node is no member any more.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub struct Remove {
    /// Id of the node.
    node: String,
    /// Do it without being asked.
    #[arg(long)]
    yes: bool,
}

fn parse_label(text: &str) -> std::result::Result<(String, String), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() && !value.is_empty() => {
            Ok((key.into(), value.into()))
        }
        (None, Some(key)) if !key.is_empty() => Ok((key.into(), String::new())),
        _ => Err("write KEY=VALUE, or KEY- to take it away".into()),
    }
}

/// What is wanted of a node, as it is shown.
#[derive(Debug, Serialize)]
pub struct MemberView {
    /// active, maintenance, decommissioning, decommissioned
    pub state: String,
    pub cordoned: bool,
    pub labels: BTreeMap<String, String>,
    pub alive: bool,
    pub storage: bool,
    /// What is in the way of what is wanted, or still to be done.
    pub waits: String,
    /// Why it gets nothing new.
    pub unfit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainView>,
    /// By gossip: alive, suspect, down; empty: never.
    pub heard: String,
    pub gossip_address: String,
    /// What it said of itself by gossip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadView>,
}

/// How busy a node is.
#[derive(Debug, Serialize)]
pub struct LoadView {
    pub age_ms: u64,
    pub version: String,
    pub load_permille: u32,
    pub cpu_permille: u32,
    pub machine_permille: u32,
    pub memory_used_bytes: u64,
    pub reads_per_s: u64,
    pub writes_per_s: u64,
    pub read_bytes_per_s: u64,
    pub written_bytes_per_s: u64,
    pub coordinated: u32,
}

impl LoadView {
    fn new(load: &MemberLoad) -> LoadView {
        LoadView {
            age_ms: load.age_ms,
            version: load.version.clone(),
            load_permille: load.load_permille,
            cpu_permille: load.cpu_permille,
            machine_permille: load.machine_permille,
            memory_used_bytes: load.memory_used_bytes,
            reads_per_s: load.reads,
            writes_per_s: load.writes,
            read_bytes_per_s: load.read_bytes,
            written_bytes_per_s: load.written_bytes,
            coordinated: load.coordinated,
        }
    }
}

/// The last drain.
#[derive(Debug, Serialize)]
pub struct DrainView {
    pub job_id: String,
    pub state: String,
    pub moved: u32,
    pub left: u32,
}

impl MemberView {
    pub fn new(member: &Member) -> MemberView {
        let drain = member.drain.as_ref().map(|d| DrainView {
            job_id: d.job_id.clone(),
            state: d.state.clone(),
            moved: d.moved,
            left: d.left,
        });
        MemberView {
            state: member.state.clone(),
            cordoned: member.cordoned,
            labels: member.labels.clone().into_iter().collect(),
            alive: member.alive,
            storage: member.storage,
            waits: member.waits.clone(),
            unfit: member.unfit.clone(),
            drain,
            heard: member.heard.clone(),
            gossip_address: member.gossip_address.clone(),
            load: member.load.as_ref().map(LoadView::new),
        }
    }

    /// What it said of itself, while it is heard.
    fn lately(&self) -> Option<&LoadView> {
        self.load.as_ref().filter(|_| self.heard == "alive")
    }

    /// How busy its reactors are, in percent.
    pub fn load_shown(&self) -> String {
        let load = self.lately().map(|l| format!("{} %", l.load_permille / 10));
        load.unwrap_or_else(|| "-".into())
    }

    /// Commands of hosts per second.
    pub fn iops_shown(&self) -> String {
        let iops = self.lately().map(|l| l.reads_per_s + l.writes_per_s);
        iops.map_or_else(|| "-".into(), |n| n.to_string())
    }

    /// Whether it is heard.
    pub fn heard_shown(&self) -> String {
        match self.heard.is_empty() {
            true => "-".into(),
            false => self.heard.clone(),
        }
    }

    /// In a few words.
    pub fn shown(&self) -> String {
        let drain = self.drain.as_ref().filter(|d| d.state == "running");
        let drain = drain.map(|d| format!(", drains ({} left)", d.left));
        let cordoned = if self.cordoned { ", cordoned" } else { "" };
        format!("{}{cordoned}{}", self.state, drain.unwrap_or_default())
    }

    pub fn labels_shown(&self) -> String {
        let pairs = self.labels.iter().map(|(k, v)| format!("{k}={v}"));
        pairs.collect::<Vec<_>>().join(",")
    }
}

/// All members.
pub async fn members(client: &mut Client) -> Result<ListMembersReply> {
    let reply = client.admin.list_members(ListMembersRequest {}).await;
    let reply = reply.map_err(|s| Failure::from_status("list members", &s))?;
    Ok(reply.into_inner())
}

async fn change(client: &mut Client, node: &str, change: Change, force: bool) -> Result<Member> {
    let request = UpdateMemberRequest {
        node_id: node.into(),
        change: Some(change),
        force,
    };
    let reply = client.admin.update_member(request).await;
    let reply = reply.map_err(|s| Failure::from_status(format!("node {node}"), &s))?;
    Ok(reply.into_inner())
}

async fn act(client: &mut Client, node: &str, action: &str) -> Result<Member> {
    change(client, node, Change::Action(action.into()), false).await
}

fn answer(member: &Member, says: &str) -> Answer {
    let view = MemberView::new(member);
    let mut text = format!("Node {} is {}. {says}\n", member.node_id, view.shown());
    if !view.waits.is_empty() {
        text += &format!("{}\n", view.waits);
    }
    Answer::new(&view, text)
}

/// Looks until a member is as it is to be.
async fn wait(
    client: &mut Client,
    node: &str,
    done: impl Fn(&Member) -> Result<bool>,
) -> Result<Member> {
    loop {
        let known = members(client).await?.members;
        let found = known.into_iter().find(|m| m.node_id == node);
        let found = found.ok_or_else(|| Failure::NotFound {
            what: format!("node {node}"),
            why: "it is not there any more".into(),
        })?;
        if done(&found)? {
            return Ok(found);
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub async fn label(client: &mut Client, args: Label) -> Result<Answer> {
    let labels = args.labels.into_iter().collect();
    let labels = Change::Labels(MemberLabels { labels });
    let member = change(client, &args.node, labels, false).await?;
    let shown = MemberView::new(&member).labels_shown();
    Ok(answer(&member, &format!("Labels: {shown}.")))
}

pub async fn cordon(client: &mut Client, args: One, cordon: bool) -> Result<Answer> {
    let (action, says) = match cordon {
        true => ("cordon", "It gets nothing new."),
        false => ("uncordon", "It may get something new."),
    };
    let member = act(client, &args.node, action).await?;
    Ok(answer(&member, says))
}

/// Nothing is attached there, or leaves.
fn is_shed(member: &Member) -> Result<bool> {
    match &member.drain {
        Some(drain) if drain.state == "failed" => Err(Failure::local(
            format!("drain node {}", member.node_id),
            member.waits.clone(),
        )),
        Some(drain) => Ok(drain.state != "running"),
        None => Ok(true),
    }
}

pub async fn drain(client: &mut Client, args: Drain) -> Result<Answer> {
    if args.cancel {
        let member = act(client, &args.node, "cancel-drain").await?;
        return Ok(answer(
            &member,
            "It is not drained; `keelctl node uncordon` lets it have something new.",
        ));
    }
    let member = act(client, &args.node, "drain").await?;
    if !args.wait {
        return Ok(answer(
            &member,
            "Begun; `keelctl node list` says what is left.",
        ));
    }
    let member = wait(client, &args.node, is_shed).await?;
    Ok(answer(&member, "Nothing is attached there."))
}

pub async fn maintenance(client: &mut Client, args: Maintenance) -> Result<Answer> {
    if args.exit {
        let member = act(client, &args.node, "exit-maintenance").await?;
        return Ok(answer(&member, "It takes its part again."));
    }
    let enter = Change::Action("enter-maintenance".into());
    let member = change(client, &args.node, enter, args.force).await?;
    if !args.wait {
        let says = "Take its machine away when nothing is left to be done (`keelctl node list`).";
        return Ok(answer(&member, says));
    }
    let rests = |m: &Member| Ok(m.attached == 0 || m.state != "maintenance");
    let member = wait(client, &args.node, rests).await?;
    Ok(answer(&member, "Its machine may be taken away."))
}

pub async fn decommission(client: &mut Client, args: Decommission) -> Result<Answer> {
    if args.cancel {
        let member = act(client, &args.node, "cancel-decommission").await?;
        return Ok(answer(&member, "It stays."));
    }
    if !args.yes {
        return Err(Failure::Usage(format!(
            "everything on node {0} is moved elsewhere, and its data directory never joins again: say so with --yes",
            args.node
        )));
    }
    let member = act(client, &args.node, "decommission").await?;
    if !args.wait {
        return Ok(answer(
            &member,
            "Begun; `keelctl node list` says what is left.",
        ));
    }
    let what = format!("decommission node {}", args.node);
    let gone = |m: &Member| match m.state.as_str() {
        "decommissioned" => Ok(true),
        "decommissioning" => Ok(false),
        _ => Err(Failure::local(what.clone(), "it was taken back".to_owned())),
    };
    let member = wait(client, &args.node, gone).await?;
    Ok(answer(&member, "It is no member any more."))
}

pub async fn remove(client: &mut Client, args: Remove) -> Result<Answer> {
    if !args.yes {
        return Err(Failure::Usage(format!(
            "the data directory of node {} never joins again: say so with --yes",
            args.node
        )));
    }
    let member = act(client, &args.node, "remove").await?;
    Ok(answer(&member, "It is no member any more."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away() {
        let pair = |k: &str, v: &str| Ok((k.to_owned(), v.to_owned()));
        assert_eq!(parse_label("zone=a"), pair("zone", "a"));
        assert_eq!(parse_label("a=b-"), pair("a", "b-"));
        assert_eq!(parse_label("zone-"), pair("zone", ""));
        for bad in ["zone", "=a", "zone=", "-", ""] {
            assert!(parse_label(bad).is_err(), "{bad}");
        }
    }
}
