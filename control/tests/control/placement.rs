//! Where replicas are placed, over nodes with fake data paths: what is said is what is done, limits hold whoever asks at once, rules stay with the volume.
use crate::bench::refused;
use crate::replicated::{LOOK, Nodes, PATIENCE};
use keelblock_api::admin::*;
use keelblock_api::openstorage::*;
use tonic::Code;

const MIB: u64 = 1 << 20;

fn spec(replicas: i64) -> VolumeSpec {
    VolumeSpec {
        size: 16 * MIB,
        ha_level: replicas,
        ..Default::default()
    }
}

async fn explain(c: &Nodes, at: usize, spec: VolumeSpec) -> ExplainPlacementReply {
    let create = SdkVolumeCreateRequest {
        name: "wish".into(),
        spec: Some(spec),
        ..Default::default()
    };
    let request = ExplainPlacementRequest {
        create: Some(create),
    };
    let reply = c.nodes[at].admin().explain_placement(request).await;
    reply.unwrap().into_inner()
}

fn chosen(reply: &ExplainPlacementReply) -> Vec<String> {
    let mut chosen: Vec<_> = reply
        .nodes
        .iter()
        .filter(|n| n.outcome == "chosen")
        .collect();
    chosen.sort_by_key(|n| n.replica);
    chosen.into_iter().map(|n| n.node_id.clone()).collect()
}

async fn provisioned(c: &Nodes) -> Vec<ProvisionedPool> {
    let mut admin = c.nodes[0].admin();
    let reply = admin.provision_status(ProvisionStatusRequest {}).await;
    reply.unwrap().into_inner().pools
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_explained_is_what_is_done() {
    let c = Nodes::start(3).await;
    // All have said what room they have.
    c.create("first", 3).await;
    let said = explain(&c, 0, spec(2)).await;
    assert!(
        said.possible && said.error.is_empty() && said.nodes.len() == 3,
        "{said:?}"
    );
    let lost = said.nodes.iter().find(|n| n.outcome == "lost");
    assert!(lost.unwrap().why.starts_with("to "), "{said:?}");
    let id = c.nodes[0].try_create("second", spec(2)).await.unwrap();
    let volume = c.nodes[0].inspect(&id).await.unwrap();
    let mut there = volume.replica_sets[0].nodes.clone();
    let mut would = chosen(&said);
    there.sort();
    would.sort();
    assert_eq!(there, would);
    // The next one begins with the node that has none of it.
    let said = explain(&c, 0, spec(1)).await;
    assert!(
        said.nodes.is_empty() && said.note.contains("n1"),
        "{said:?}"
    );
    let only = VolumeSpec {
        replica_set: Some(ReplicaSet {
            nodes: vec!["n3".into()],
            ..Default::default()
        }),
        ..spec(1)
    };
    assert_eq!(chosen(&explain(&c, 1, only.clone()).await), ["n3"]);
    let id = c.nodes[1].try_create("third", only.clone()).await.unwrap();
    let volume = c.nodes[0].inspect(&id).await.unwrap();
    assert_eq!(volume.replica_sets[0].nodes, ["n3"]);
    let few = VolumeSpec {
        ha_level: 2,
        ..only
    };
    let said = explain(&c, 0, few.clone()).await;
    assert!(
        !said.possible && said.error.contains("n1: other nodes were named"),
        "{said:?}"
    );
    let mut unknown = few.clone();
    unknown.replica_set.as_mut().unwrap().nodes = vec!["n9".into()];
    refused(
        c.nodes[0].try_create("v", unknown).await,
        Code::NotFound,
        "n9",
    );
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_beyond_the_limit_when_all_ask_at_once() {
    let c = Nodes::start(3).await;
    c.create("first", 3).await;
    let total = provisioned(&c).await[0].total_bytes;
    // Room for three of these in each pool beside the first: nine replicas, so four volumes with two.
    let large = VolumeSpec {
        size: total / 4,
        ..spec(2)
    };
    let limits = PlacementLimitsRequest {
        overcommit_percent: Some(100),
        reserve_percent: None,
    };
    c.nodes[1].admin().placement_limits(limits).await.unwrap();
    let ask = |n: usize| {
        let (node, spec) = (&c.nodes[n % 3], large.clone());
        async move { node.try_create(&format!("v{n}"), spec).await }
    };
    let (a, b, d) = tokio::join!(ask(0), ask(1), ask(2));
    let (e, f, g) = tokio::join!(ask(3), ask(4), ask(5));
    let all = [a, b, d, e, f, g];
    let made = all.iter().filter(|r| r.is_ok()).count();
    for pool in provisioned(&c).await {
        let most = pool.provisionable_bytes.unwrap();
        assert!(pool.provisioned_bytes <= most, "{pool:?}");
    }
    assert_eq!(made, 4, "{all:?}");
    for failed in all.into_iter().filter(|r| r.is_err()) {
        refused(failed, Code::FailedPrecondition, "provisioned");
    }
    let too_much = PlacementLimitsRequest {
        reserve_percent: Some(91),
        overcommit_percent: None,
    };
    let set = c.nodes[0].admin().placement_limits(too_much).await;
    refused(set, Code::InvalidArgument, "reserve_percent");
    c.stop().await;
}

/// Provisioned of a node's pool.
async fn at(c: &Nodes, node: &str) -> u64 {
    let pools = provisioned(c).await;
    let pool = pools.iter().find(|p| p.node_id == node);
    pool.unwrap().provisioned_bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_placed_heeds_the_limit_too_and_counts_nothing_that_was_refused() {
    let c = Nodes::start(3).await;
    c.create("first", 3).await;
    let total = provisioned(&c).await[0].total_bytes;
    let half = total / 2 / MIB * MIB;
    let limit = |percent| PlacementLimitsRequest {
        overcommit_percent: Some(percent),
        reserve_percent: None,
    };
    let mut admin = c.nodes[1].admin();
    admin.placement_limits(limit(60)).await.unwrap();
    let before = at(&c, "n1").await;
    c.nodes[0].create("half", half).await;
    // Grown, as another one, and cloned: each is more than there may be.
    let full = Code::ResourceExhausted;
    let grown = total / 10 * 7 / MIB * MIB;
    let more = c.nodes[0].update("half", &[], Some(grown)).await;
    refused(more, full, "pool default of node n1");
    let large = VolumeSpec {
        size: half,
        ..spec(1)
    };
    let said = explain(&c, 0, large.clone()).await;
    assert!(!said.possible && said.error.contains("node n1"), "{said:?}");
    let another = c.nodes[0].try_create("another", large.clone()).await;
    refused(another, full, "60 percent");
    let clone = c.nodes[0].clone_of("half", "clone").await;
    refused(clone, full, "keelctl cluster options --overcommit");
    // Of a volume with replicas one full pool is enough, whoever is asked.
    let more = c.nodes[2].update("first", &[], Some(total / 5)).await;
    refused(more, full, "of node n1");
    assert_eq!(at(&c, "n1").await, before + half, "nothing else is counted");
    // The other nodes have room, and what is small has some here.
    c.nodes[1].try_create("another", large).await.unwrap();
    c.nodes[0].create("small", MIB).await;
    let small = Some(2 * MIB);
    c.nodes[0].update("small", &[], small).await.unwrap();
    let first = Some(32 * MIB);
    c.nodes[2].update("first", &[], first).await.unwrap();
    c.nodes[2].clone_of("first", "beside").await.unwrap();
    assert_eq!(at(&c, "n1").await, before + half + (2 + 16 + 32) * MIB);
    admin.placement_limits(limit(100)).await.unwrap();
    c.nodes[0].update("half", &[], Some(grown)).await.unwrap();
    assert_eq!(at(&c, "n1").await, before + grown + (2 + 16 + 32) * MIB);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_back_to_a_larger_size_heeds_the_limit() {
    let c = Nodes::start(3).await;
    c.create("set", 3).await;
    c.attach_to(0, "set", "n1").await.unwrap();
    c.nodes[0].create("one", 16 * MIB).await;
    let total = provisioned(&c).await[0].total_bytes;
    let large = total / 2 / MIB * MIB;
    for volume in ["one", "set"] {
        let name = |size: &str| format!("{volume}-{size}");
        c.nodes[0].snapshot(volume, &name("small")).await.unwrap();
        c.nodes[0].update(volume, &[], Some(large)).await.unwrap();
        c.nodes[0].snapshot(volume, &name("large")).await.unwrap();
    }
    c.nodes[0].detach("set").await.unwrap();
    for volume in ["one", "set"] {
        let small = format!("{volume}-small");
        c.nodes[0].restore(volume, &small).await.unwrap();
    }
    assert_eq!(at(&c, "n1").await, 32 * MIB);
    let limit = |percent| PlacementLimitsRequest {
        overcommit_percent: Some(percent),
        reserve_percent: None,
    };
    let mut admin = c.nodes[1].admin();
    admin.placement_limits(limit(30)).await.unwrap();
    for volume in ["one", "set"] {
        let back = c.nodes[0].restore(volume, &format!("{volume}-large")).await;
        refused(back, Code::ResourceExhausted, "set back to");
        assert_eq!(at(&c, "n1").await, 32 * MIB, "nothing is counted");
    }
    admin.placement_limits(limit(100)).await.unwrap();
    for (volume, all) in [("one", large + 16 * MIB), ("set", 2 * large)] {
        let name = format!("{volume}-large");
        c.nodes[0].restore(volume, &name).await.unwrap();
        assert_eq!(at(&c, "n1").await, all);
    }
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_stay_with_the_volume() {
    let c = Nodes::start(3).await;
    c.create("first", 3).await;
    let away = VolumePlacementSpec {
        match_expressions: vec![LabelSelectorRequirement {
            key: "app".into(),
            operator: label_selector_requirement::Operator::In.into(),
            values: vec!["db".into()],
        }],
        ..Default::default()
    };
    let strategy = VolumePlacementStrategy {
        volume_anti_affinity: vec![away],
        ..Default::default()
    };
    let lonely = |replicas| VolumeSpec {
        placement_strategy: Some(strategy.clone()),
        volume_labels: [("app".to_owned(), "db".to_owned())].into(),
        ..spec(replicas)
    };
    let one = c.nodes[0].try_create("one", lonely(1)).await.unwrap();
    let shown = c.nodes[2].inspect(&one).await.unwrap().spec.unwrap();
    assert_eq!(shown.placement_strategy, Some(strategy.clone()));
    assert_eq!(c.nodes[1].try_create("one", lonely(1)).await.unwrap(), one);
    refused(
        c.nodes[0]
            .try_create(
                "one",
                VolumeSpec {
                    placement_strategy: None,
                    ..lonely(2)
                },
            )
            .await,
        Code::AlreadyExists,
        "one",
    );
    c.nodes[1].try_create("two", lonely(2)).await.unwrap();
    // Every node has one of the two now.
    let error = c.nodes[2].try_create("three", lonely(1)).await;
    refused(
        error,
        Code::FailedPrecondition,
        "volume_anti_affinity[0] forbids it",
    );
    // It binds a volume without rules of its own, too.
    let plain = VolumeSpec {
        placement_strategy: None,
        ..lonely(2)
    };
    let error = c.nodes[2].try_create("four", plain).await;
    refused(
        error,
        Code::FailedPrecondition,
        "volume_anti_affinity of volume",
    );
    // And a replica that is to come to one of them later.
    let more = UpdateReplicasRequest {
        volume: "one".into(),
        node: String::new(),
        change: Some(update_replicas_request::Change::Replicas(2)),
    };
    let error = c.nodes[0].admin().update_replicas(more).await;
    refused(error, Code::FailedPrecondition, "volume_anti_affinity");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_is_planned_and_its_moves_are_tasks_of_their_volumes() {
    let c = Nodes::start(3).await;
    let first = c.create("first", 3).await;
    c.attach_to(0, &first, "n1").await.unwrap();
    let total = provisioned(&c).await[0].total_bytes;
    let on = |node: &str| VolumeSpec {
        size: total / 4,
        replica_set: Some(ReplicaSet {
            nodes: vec![node.into()],
            ..Default::default()
        }),
        ..spec(1)
    };
    let all = ["a", "b", "c"];
    for name in all {
        c.nodes[0].try_create(name, on("n1")).await.unwrap();
    }
    // The others are attached nowhere, and may be moved all the same.
    c.attach_to(0, "a", "n1").await.unwrap();
    let request = PlanRebalanceRequest::default();
    let plan = c.nodes[2]
        .admin()
        .plan_rebalance(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(plan.unbalanced_before, 1, "{plan:?}");
    let names: Vec<_> = plan.moves.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names.len(), 2, "{plan:?}");
    for one in &plan.moves {
        assert!(
            all.contains(&one.name.as_str()) && one.from_node == "n1",
            "{plan:?}"
        );
    }
    assert_ne!(plan.moves[0].to_node, plan.moves[1].to_node, "{plan:?}");
    assert!(plan.left.is_empty(), "{plan:?}");
    let one = &plan.moves[0];
    let request = UpdateReplicasRequest {
        volume: one.volume_id.clone(),
        node: one.to_node.clone(),
        change: Some(update_replicas_request::Change::MoveFrom(
            one.from_node.clone(),
        )),
    };
    let begun = c.nodes[1].admin().update_replicas(request).await.unwrap();
    let task = begun.into_inner().task.unwrap();
    assert_eq!(
        (task.kind.as_str(), task.new_node.as_str()),
        ("move", one.to_node.as_str())
    );
    let moved = async {
        loop {
            let found = c.locate(0, &one.name).await;
            if found.task.is_some_and(|t| t.state == "done") {
                return found.replicas;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let replicas = tokio::time::timeout(PATIENCE, moved)
        .await
        .expect("it is moved");
    assert_eq!((replicas.len(), &replicas[0].node_id), (1, &one.to_node));
    c.stop().await;
}
