//! Nodes join, are marked, emptied, and leave; or are refused: by another machine's id, by a wrong token, by what would be lost.
use crate::bench::{Bench, refused};
use crate::replicated::{LOOK, Nodes, PATIENCE};
use keelblock_api::admin::update_member_request::Change;
use keelblock_api::admin::*;
use keelblock_api::openstorage::*;
use std::fs;
use tonic::{Code, Status};

impl Nodes {
    async fn member(&self, at: usize, node: &str) -> Member {
        let mut admin = self.nodes[at].admin();
        let listed = admin.list_members(ListMembersRequest {}).await;
        let listed = listed.unwrap().into_inner().members;
        listed.into_iter().find(|m| m.node_id == node).unwrap()
    }

    async fn wish(&self, at: usize, node: &str, action: &str) -> Result<Member, Status> {
        let request = UpdateMemberRequest {
            node_id: node.into(),
            change: Some(Change::Action(action.into())),
            force: false,
        };
        let reply = self.nodes[at].admin().update_member(request).await;
        reply.map(tonic::Response::into_inner)
    }

    async fn until_member(&self, at: usize, node: &str, is_so: impl Fn(&Member) -> bool) -> Member {
        let wait = async {
            loop {
                let member = self.member(at, node).await;
                if is_so(&member) {
                    return member;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, wait).await;
        match found {
            Ok(member) => member,
            Err(_) => panic!("waited in vain; it is {:?}", self.member(at, node).await),
        }
    }

    async fn until_coordinated_by(&self, at: usize, volume: &str, nodes: &[&str]) -> String {
        let wait = async {
            loop {
                let found = self.locate(at, volume).await;
                let there = nodes.contains(&found.coordinator.as_str());
                if there && found.state == "serving" {
                    return found.coordinator;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, wait).await;
        found.expect("it is coordinated elsewhere")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_with_the_clusters_token_and_under_an_id_of_its_own() {
    let mut c = Nodes::start(1).await;
    let dir = tempfile::tempdir().unwrap();
    let token = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    };
    let why =
        |outcome: Result<(), keelblock_control::run::RunError>| outcome.unwrap_err().to_string();
    let known = c.member(0, "n1").await;
    assert_eq!(
        (known.state.as_str(), known.alive, known.storage),
        ("active", true, true)
    );
    // It is started with a token, which is the cluster's from then on.
    let node = &mut c.nodes[0];
    node.stop_control().await;
    node.config().cluster_token_file = token("right", "correct horse\n");
    node.config().labels = vec![("zone".into(), "a".into())];
    node.start_control().await.unwrap();
    node.stop_control().await;
    node.config().cluster_token_file = token("wrong", "incorrect horse");
    let said = why(node.start_control().await);
    assert!(
        said.contains("not that of cluster test") && !said.contains("horse"),
        "{said}"
    );
    node.config().cluster_token_file = None;
    let said = why(node.start_control().await);
    assert!(said.contains("--cluster-token-file"), "{said}");
    node.config().cluster_token_file = token("right", "correct horse");
    node.start_control().await.unwrap();
    node.ready().await;
    assert_eq!(c.member(0, "n1").await.labels["zone"], "a");
    // Another machine with the same id.
    let kvdb = c.kvdb();
    let mut other = Bench::prepare("n1", &kvdb).await;
    other.config().cluster_token_file = token("right", "correct horse");
    let said = why(other.start_control().await);
    assert!(said.contains("node id n1 is taken"), "{said}");
    assert_eq!(
        c.member(0, "n1").await.sdk_address,
        c.nodes[0].control().sdk.to_string()
    );
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_token_lets_members_start_and_nobody_else_join() {
    let mut c = Nodes::start(1).await;
    let dir = tempfile::tempdir().unwrap();
    let token = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    };
    let kvdb = c.kvdb();
    let rotate = |text: &str, grace_minutes| RotateTokenRequest {
        token: text.into(),
        grace_minutes,
    };
    let none = c.nodes[0].admin().rotate_token(rotate("", 0)).await;
    refused(none, Code::FailedPrecondition, "--cluster-token-file");
    let mut admin = c.nodes[0].admin();
    let shown = admin.cluster_token(ClusterTokenRequest {}).await;
    let shown = shown.unwrap().into_inner();
    assert_eq!(shown, ClusterTokenReply::default());
    let node = &mut c.nodes[0];
    node.config().cluster_token_file = token("first", "correct horse");
    node.restart_control().await;
    for (request, why) in [
        (rotate("short", 0), "token"),
        (rotate("two\nlines of it", 0), "token"),
        (rotate("", 43_201), "grace_minutes"),
    ] {
        let answer = c.nodes[0].admin().rotate_token(request).await;
        refused(answer, Code::InvalidArgument, why);
    }
    // One that is made, and for some minutes both.
    let made = c.nodes[0].admin().rotate_token(rotate("", 60)).await;
    let made = made.unwrap().into_inner();
    assert_eq!(made.token.len(), 64);
    let now = made.now.as_ref().unwrap();
    assert!(now.since_unix_ms > 0 && now.former[0].until_unix_ms > now.since_unix_ms);
    let with = async |id: &str, path: &Option<std::path::PathBuf>| {
        let mut other = Bench::prepare(id, &kvdb).await;
        other.config().cluster_token_file = path.clone();
        other
    };
    let first = token("first", "correct horse");
    let second = token("second", &made.token);
    let mut n2 = with("n2", &first).await;
    n2.start_control().await.unwrap();
    // By itself: the former one is only for members from then on.
    let third = "a third token";
    let said = c.nodes[0].admin().rotate_token(rotate(third, 0)).await;
    let said = said.unwrap().into_inner();
    assert_eq!(
        (said.token.as_str(), said.now.as_ref().unwrap().former.len()),
        ("", 2)
    );
    let again = n2.admin().rotate_token(rotate(third, 5)).await.unwrap();
    let again = again.into_inner();
    assert_eq!(again.now.as_ref().unwrap().former.len(), 2, "nothing");
    let back = n2.admin().rotate_token(rotate("correct horse", 0)).await;
    refused(back, Code::InvalidArgument, "given up");
    let mut n3 = with("n3", &second).await;
    let why = n3.start_control().await.unwrap_err().to_string();
    assert!(why.contains("needs the present one"), "{why}");
    assert!(!why.contains(&made.token), "{why}");
    n3.config().cluster_token_file = token("third", third);
    n3.start_control().await.unwrap();
    // Within its time it still is: who was a member a moment ago is no more than others when it is not.
    n2.restart_control().await;
    c.nodes[0].restart_control().await;
    for at in ["n1", "n2", "n3"] {
        assert_eq!(c.member(0, at).await.state, "active", "{at}");
    }
    let mut stranger = with("n2", &second).await;
    let why = stranger.start_control().await.unwrap_err().to_string();
    assert!(why.contains("needs the present one"), "{why}");
    // All hear each other, whichever token they have.
    let heard = async |of: &Bench| {
        let mut admin = of.admin();
        let listed = admin.list_members(ListMembersRequest {}).await.unwrap();
        let members = listed.into_inner().members;
        members.iter().filter(|m| m.load.is_some()).count()
    };
    let all = async {
        for of in [&c.nodes[0], &n2, &n3] {
            while heard(of).await < 3 {
                tokio::time::sleep(LOOK).await;
            }
        }
    };
    let all = tokio::time::timeout(PATIENCE, all).await;
    assert!(all.is_ok(), "nodes with different tokens hear each other");
    n3.stop_control().await;
    n2.stop_control().await;
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attachments_leave_a_node_that_is_drained_or_in_maintenance_and_nothing_comes() {
    let c = Nodes::start(3).await;
    let id = c.create("v", 3).await;
    c.nodes[0].attach("v").await;
    let request = SdkNodeDrainAttachmentsRequest {
        node_id: "n1".into(),
        issuer: "test".into(),
        ..Default::default()
    };
    let mut nodes = c.nodes[1].nodes();
    let selector = SdkNodeDrainAttachmentsRequest {
        only_sharedv4: true,
        ..request.clone()
    };
    refused(
        nodes.drain_attachments(selector).await,
        Code::InvalidArgument,
        "only_sharedv4",
    );
    let job = nodes.drain_attachments(request).await.unwrap().into_inner();
    let job = job.job.unwrap();
    assert_eq!(job.r#type(), job::Type::DrainAttachments);
    let to = c.until_coordinated_by(1, "v", &["n2", "n3"]).await;
    let drained = |m: &Member| m.drain.as_ref().is_some_and(|d| d.state == "done");
    let member = c.until_member(1, "n1", drained).await;
    let drain = member.drain.unwrap();
    assert_eq!((drain.job_id, drain.moved, drain.left), (job.id, 1, 0));
    assert!(member.cordoned);
    // It has its replica, and gets nothing new.
    assert_eq!(c.nodes[0].fake.memory().replication.replicas.len(), 1);
    refused(
        c.attach_to(1, &id, "n1").await,
        Code::FailedPrecondition,
        "it is cordoned",
    );
    let spec = |ha_level| VolumeSpec {
        size: 1 << 20,
        ha_level,
        ..Default::default()
    };
    let three = c.nodes[1].try_create("w", spec(3)).await;
    refused(three, Code::FailedPrecondition, "n1: it is cordoned");
    let here = c.nodes[0].try_create("w", spec(1)).await;
    refused(here, Code::FailedPrecondition, "it is cordoned");
    // The others are needed.
    c.wish(1, "n1", "enter-maintenance").await.unwrap();
    for node in ["n2", "n3"] {
        c.until_member(1, node, |m| m.datapath_up).await;
    }
    refused(
        c.wish(1, &to, "enter-maintenance").await,
        Code::FailedPrecondition,
        "volume v would have 1 replicas in sync",
    );
    let inspect = SdkNodeInspectRequest {
        node_id: "n1".into(),
    };
    let shown = nodes
        .inspect(inspect)
        .await
        .unwrap()
        .into_inner()
        .node
        .unwrap();
    assert_eq!(
        shown.status(),
        keelblock_api::openstorage::Status::Maintenance
    );
    c.wish(1, "n1", "exit-maintenance").await.unwrap();
    let request = SdkNodeUncordonAttachmentsRequest {
        node_id: "n1".into(),
    };
    nodes.uncordon_attachments(request).await.unwrap();
    c.attach_to(1, &id, "n1").await.unwrap();
    // Maintenance moves attachments, too.
    c.wish(2, "n1", "enter-maintenance").await.unwrap();
    c.until_coordinated_by(1, "v", &["n2", "n3"]).await;
    c.until_member(1, "n1", |m| m.attached == 0).await;
    refused(c.wish(1, "n9", "cordon").await, Code::NotFound, "n9");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_decommissioned_when_everything_it_has_is_elsewhere() {
    let mut c = Nodes::start(2).await;
    // One is attached there, one nowhere, and one lies in its pool alone.
    c.create("used", 2).await;
    c.create("idle", 2).await;
    c.attach_to(0, "used", "n1").await.unwrap();
    c.nodes[0].create("local", 1 << 20).await;
    let why = c.wish(1, "n1", "decommission").await.unwrap_err();
    assert_eq!(why.code(), Code::FailedPrecondition);
    for part in [
        "volume local",
        "volume used",
        "volume idle",
        "n2: it has one",
    ] {
        assert!(why.message().contains(part), "{part}: {}", why.message());
    }
    c.nodes[0].delete("local").await.unwrap();
    let kvdb = c.kvdb();
    c.nodes.push(Bench::join("n3", &kvdb).await);
    c.until_member(1, "n3", |m| m.datapath_up).await;
    // It says a moment later what room it has.
    let begun = async {
        loop {
            match c.wish(1, "n1", "decommission").await {
                Ok(member) => return member,
                Err(why) => assert!(why.message().contains("n3"), "{why:?}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let begun = tokio::time::timeout(PATIENCE, begun).await.unwrap();
    assert_eq!(begun.state, "decommissioning");
    c.until_member(1, "n1", |m| m.state == "decommissioned")
        .await;
    for volume in ["used", "idle"] {
        let found = c.locate(1, volume).await;
        let mut on: Vec<_> = found.replicas.iter().map(|r| r.node_id.as_str()).collect();
        on.sort_unstable();
        assert_eq!(on, ["n2", "n3"], "{volume}: {found:?}");
        assert!(
            found.replicas.iter().all(|r| r.state == "member"),
            "{found:?}"
        );
    }
    c.until("its replicas are deleted", |c| {
        c.nodes[0].fake.memory().replication.replicas.is_empty()
    })
    .await;
    let nodes = c.nodes[1]
        .nodes()
        .enumerate(SdkNodeEnumerateRequest {})
        .await;
    assert_eq!(nodes.unwrap().into_inner().node_ids, ["n2", "n3"]);
    // Its data directory never joins again; another one may have its id.
    c.nodes[0].stop_control().await;
    let left = c.nodes[0].start_control().await.unwrap_err();
    assert!(left.to_string().contains("was decommissioned"), "{left}");
    assert_eq!(left.exit_code(), 3, "so that nobody starts it again");
    c.nodes.push(Bench::join("n1", &kvdb).await);
    assert_eq!(c.member(1, "n1").await.state, "active");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced_but_not_where_it_has_the_last_good_copy() {
    let mut c = Nodes::start(3).await;
    let id = c.create("v", 2).await;
    let has = |c: &Nodes, n: usize| !c.nodes[n].fake.memory().replication.replicas.is_empty();
    let dead = (0..3).find(|n| has(&c, *n)).unwrap();
    let other = (0..3).find(|n| *n != dead && has(&c, *n)).unwrap();
    let (name, at) = (
        format!("n{}", dead + 1),
        (0..3).find(|n| !has(&c, *n)).unwrap(),
    );
    refused(
        c.wish(at, &name, "remove").await,
        Code::FailedPrecondition,
        "lives",
    );
    c.nodes[dead].fake.kill();
    c.nodes[dead].stop_control().await;
    c.until_member(at, &name, |m| !m.alive).await;
    refused(
        c.wish(at, &name, "remove").await,
        Code::FailedPrecondition,
        "is not empty",
    );
    c.nodes[other].fake.kill();
    c.until_member(at, &format!("n{}", other + 1), |m| !m.datapath_up)
        .await;
    refused(
        c.wish(at, &name, "decommission").await,
        Code::FailedPrecondition,
        "last good copy",
    );
    c.nodes[other].fake.restart();
    c.until_member(at, &format!("n{}", other + 1), |m| m.datapath_up)
        .await;
    let begun = async {
        while c.wish(at, &name, "decommission").await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, begun)
        .await
        .expect("the other one has its room again");
    c.until_member(at, &name, |m| m.state == "decommissioned")
        .await;
    let found = c.locate(at, &id).await;
    let on: Vec<_> = found
        .replicas
        .iter()
        .filter(|r| r.state == "member")
        .collect();
    assert!(
        on.len() == 2 && on.iter().all(|r| r.node_id != name),
        "{found:?}"
    );
    c.stop().await;
}
