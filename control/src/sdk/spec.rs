//! What a volume can be asked to be. Every field that is set must be one that this version honours; the others are refused by
//! name, found by reflection, so that a field that is added to the contract is refused until somebody says otherwise here.
use super::{owned, placement};
use crate::auth::{Caller, OwnershipRecord, OwnershipWish};
use crate::error::OpError;
use crate::node::{REPLICAS_MAX, VolumeChange, VolumeWish};
use keelblock_api::openstorage::volume_spec_update::{
    HaLevelOpt, SizeOpt, SnapshotScheduleOpt, StickyOpt,
};
use keelblock_api::openstorage::{
    ReplicaSet, SdkVolumeCreateRequest, SdkVolumeUpdateRequest, VolumeSpec, VolumeSpecUpdate,
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use std::collections::BTreeMap;
use uuid::Uuid;

const HONOURED: [&str; 12] = [
    "size",
    "block_size",
    "ha_level",
    "sticky",
    "volume_labels",
    "aggregation_level",
    "encrypted",
    "placement_strategy",
    "topology_requirement",
    "replica_set",
    "snapshot_schedule",
    "ownership",
];
const HONOURED_IN_UPDATE: [&str; 6] = [
    "size",
    "ha_level",
    "replica_set",
    "sticky",
    "snapshot_schedule",
    "ownership",
];
/// How policies are named in a spec, as the field's users write them: `policy=a,b`.
const POLICY: &str = "policy=";
/// Bytes of a logical block, unless the spec says otherwise.
const BLOCK_BYTES: u32 = 4096;

/// Which fields are honoured.
#[derive(Debug)]
pub struct Rules {
    create: MessageDescriptor,
    update: MessageDescriptor,
}

impl Rules {
    /// From the descriptors of the contracts.
    pub fn new(descriptors: &DescriptorPool) -> Result<Self, OpError> {
        let message = |name: &str| {
            let found = descriptors.get_message_by_name(name);
            found.ok_or_else(|| OpError::Internal(format!("the contracts have no message {name}")))
        };
        Ok(Self {
            create: message("openstorage.api.VolumeSpec")?,
            update: message("openstorage.api.VolumeSpecUpdate")?,
        })
    }

    /// A volume to be made.
    pub fn wish(&self, request: SdkVolumeCreateRequest) -> Result<VolumeWish, OpError> {
        if request.name.is_empty() {
            return Err(OpError::Missing {
                field: "name",
                hint: "a name that no other volume of the cluster has",
            });
        }
        let Some(spec) = request.spec else {
            return Err(OpError::Missing {
                field: "spec",
                hint: "at least spec.size, the volume's size in bytes",
            });
        };
        refuse_unsupported(&self.create, &spec, &HONOURED)?;
        let replicas = replicas(spec.ha_level)?;
        if spec.aggregation_level > 1 {
            return Err(OpError::Unsupported {
                field: "spec.aggregation_level".into(),
                why: ": volumes are not striped over replica sets",
            });
        }
        let block_bytes = match spec.block_size {
            0 => BLOCK_BYTES,
            512 => 512,
            4096 => 4096,
            other => {
                return Err(OpError::invalid(
                    "spec.block_size",
                    format!("must be 512 or 4096, not {other}"),
                ));
            }
        };
        let rules = placement::rules(spec.placement_strategy, spec.topology_requirement)?;
        let (nodes, pools) = spec.replica_set.map(only).transpose()?.unwrap_or_default();
        let mut labels: BTreeMap<String, String> = spec.volume_labels.into_iter().collect();
        labels.extend(request.labels);
        Ok(VolumeWish {
            name: request.name,
            size_bytes: spec.size,
            block_bytes,
            replicas,
            encrypted: spec.encrypted,
            sticky: spec.sticky,
            labels,
            rules,
            policies: policies(&spec.snapshot_schedule)?,
            nodes,
            pools,
            ownership: spec.ownership.map(owned::record).transpose()?,
        })
    }

    /// Changes to a volume.
    pub fn change(&self, request: SdkVolumeUpdateRequest) -> Result<VolumeChange, OpError> {
        let spec = request.spec.unwrap_or_default();
        refuse_unsupported::<VolumeSpecUpdate>(&self.update, &spec, &HONOURED_IN_UPDATE)?;
        let ownership = spec.ownership.map(|asked| {
            let OwnershipRecord { owner, acls } = owned::record(asked)?;
            // Whoever calls is said by the service.
            Ok::<_, OpError>(OwnershipWish {
                caller: Caller::Anybody,
                owner,
                acls,
            })
        });
        let level = spec
            .ha_level_opt
            .map(|HaLevelOpt::HaLevel(level)| replicas(level));
        let replicas = level.transpose()?;
        let node = spec.replica_set.map(node_of).transpose()?.flatten();
        if node.is_some() && replicas.is_none() {
            return Err(OpError::Missing {
                field: "spec.ha_level",
                hint: "more than now, or one less: spec.replica_set names the node of the replica that comes first, or goes",
            });
        }
        Ok(VolumeChange {
            replicas,
            node,
            size_bytes: spec.size_opt.map(|SizeOpt::Size(size)| size),
            policies: spec
                .snapshot_schedule_opt
                .map(|SnapshotScheduleOpt::SnapshotSchedule(text)| policies(&text))
                .transpose()?,
            sticky: spec.sticky_opt.map(|StickyOpt::Sticky(sticky)| sticky),
            labels: request.labels.into_iter().collect(),
            ownership: ownership.transpose()?,
        })
    }
}

/// Names of schedule policies, as a spec has them: `policy=a,b`, or `a,b`; empty: none.
fn policies(text: &str) -> Result<Vec<String>, OpError> {
    let names = text.trim();
    let names = names.strip_prefix(POLICY).unwrap_or(names);
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let all = names.split(',').map(|name| name.trim().to_owned());
    let all: Vec<String> = all.collect();
    let is_name = |name: &String| !name.is_empty() && !name.contains([':', '=', '\n', '@', '{']);
    match all.iter().all(is_name) {
        true => Ok(all),
        false => Err(OpError::invalid(
            "spec.snapshot_schedule",
            format!(
                "must name schedule policies, like {POLICY}hourly,daily, not times: make a policy of those first \
                 (OpenStorageSchedulePolicy.Create, `keelctl sched-policy create`)"
            ),
        )),
    }
}

/// The spec of a volume as it is, with the schedule policies that it has.
pub fn spec(
    record: &crate::records::VolumeRecord,
    replicas: u8,
    policies: &[String],
) -> VolumeSpec {
    VolumeSpec {
        size: record.size_bytes,
        block_size: record.block_bytes.into(),
        ha_level: replicas.into(),
        aggregation_level: 1,
        sticky: record.sticky,
        encrypted: record.encrypted,
        volume_labels: record.labels.clone().into_iter().collect(),
        placement_strategy: record.placement.as_ref().map(placement::strategy),
        ownership: record.ownership.as_ref().map(owned::shown),
        snapshot_schedule: match policies {
            [] => String::new(),
            all => format!("{POLICY}{}", all.join(",")),
        },
        ..Default::default()
    }
}

/// How many replicas; 0 is 1.
fn replicas(level: i64) -> Result<u8, OpError> {
    match u8::try_from(level) {
        Ok(level) if level <= REPLICAS_MAX => Ok(level.max(1)),
        _ => Err(OpError::invalid(
            "spec.ha_level",
            format!("must be 1 to {REPLICAS_MAX}, not {level}"),
        )),
    }
}

/// Nodes and pools that replicas are to be on.
fn only(set: ReplicaSet) -> Result<(Vec<String>, Vec<Uuid>), OpError> {
    if set.id != 0 {
        return Err(OpError::Unsupported {
            field: "spec.replica_set.id".into(),
            why: ": a volume has one set of replicas",
        });
    }
    let pool = |id: &String| {
        Uuid::try_parse(id).map_err(|_| {
            OpError::invalid(
                "spec.replica_set.pool_uuids",
                format!("{id} is no pool's id"),
            )
        })
    };
    let pools = set.pool_uuids.iter().map(pool).collect::<Result<_, _>>()?;
    Ok((set.nodes, pools))
}

/// The node of the replica that comes or goes.
fn node_of(set: ReplicaSet) -> Result<Option<String>, OpError> {
    if !set.pool_uuids.is_empty() || set.id != 0 {
        return Err(OpError::Unsupported {
            field: "spec.replica_set.pool_uuids".into(),
            why: ": the pool of a node with most room is taken",
        });
    }
    match set.nodes.len() {
        0 | 1 => Ok(set.nodes.into_iter().next()),
        n => Err(OpError::invalid(
            "spec.replica_set.nodes",
            format!("{n} nodes, and one replica comes or goes at a time"),
        )),
    }
}

fn refuse_unsupported<T: Message>(
    descriptor: &MessageDescriptor,
    message: &T,
    honoured: &[&str],
) -> Result<(), OpError> {
    let decoded = DynamicMessage::decode(descriptor.clone(), message.encode_to_vec().as_slice());
    let decoded = decoded
        .map_err(|e| OpError::Internal(format!("the contracts disagree with themselves: {e}")))?;
    let Some((field, _)) = decoded
        .fields()
        .find(|(field, _)| !honoured.contains(&field.name()))
    else {
        return Ok(());
    };
    let why = match field.name() {
        "passphrase" => {
            ": encrypted volumes have keys of their own, wrapped by the cluster key (--cluster-key-file)"
        }
        "format" => {
            " by this version: make the file system on the host that the volume is connected to"
        }
        "shared" | "sharedv4" | "export_spec" => ": Keelblock serves blocks, not files",
        "checksummed" => ": every block is checksummed anyway",
        _ => " by this version",
    };
    Err(OpError::Unsupported {
        field: format!("spec.{}", field.name()),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_api::openstorage::volume_spec_update::IoProfileOpt;
    use prost_reflect::Value;

    fn rules() -> (Rules, DescriptorPool) {
        let pool = DescriptorPool::decode(keelblock_api::DESCRIPTORS).unwrap();
        (Rules::new(&pool).unwrap(), pool)
    }

    fn request(spec: VolumeSpec) -> SdkVolumeCreateRequest {
        SdkVolumeCreateRequest {
            name: "v".into(),
            spec: Some(spec),
            labels: Default::default(),
        }
    }

    /// Sets every field of the spec, one at a time.
    #[test]
    fn every_field_is_honoured_or_refused_by_name() {
        let (rules, pool) = rules();
        let descriptor = pool
            .get_message_by_name("openstorage.api.VolumeSpec")
            .unwrap();
        let mut refused = 0;
        for field in descriptor.fields() {
            let mut message = DynamicMessage::new(descriptor.clone());
            let value = match field.kind() {
                _ if field.is_map() => continue,
                prost_reflect::Kind::Bool => Value::Bool(true),
                prost_reflect::Kind::Int64 => Value::I64(512),
                prost_reflect::Kind::Uint64 => Value::U64(4096),
                prost_reflect::Kind::Uint32 => Value::U32(1),
                prost_reflect::Kind::String => Value::String("x".into()),
                prost_reflect::Kind::Enum(_) => Value::EnumNumber(1),
                prost_reflect::Kind::Message(inner) => Value::Message(DynamicMessage::new(inner)),
                other => panic!("{other:?}"),
            };
            message.set_field(&field, value);
            let result = rules.wish(request(message.transcode_to().unwrap()));
            if field.name() == "ha_level" {
                assert!(
                    result.unwrap_err().to_string().contains("1 to 5"),
                    "512 are too many"
                );
            } else if HONOURED.contains(&field.name()) {
                result.unwrap();
            } else {
                let error = result.unwrap_err().to_string();
                assert!(
                    error.starts_with(&format!("spec.{} ", field.name())),
                    "{}: {error}",
                    field.name()
                );
                refused += 1;
            }
        }
        assert!(refused >= 40, "{refused}");
    }

    #[test]
    fn labels_merge_and_blocks_are_checked() {
        let (rules, _) = rules();
        let labels = |l: &[(&str, &str)]| {
            l.iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect()
        };
        let spec = VolumeSpec {
            size: 1,
            volume_labels: labels(&[("a", "spec"), ("b", "spec")]),
            ..Default::default()
        };
        let wish = rules
            .wish(SdkVolumeCreateRequest {
                labels: labels(&[("a", "request")]),
                ..request(spec)
            })
            .unwrap();
        assert_eq!(
            (wish.labels["a"].as_str(), wish.labels["b"].as_str()),
            ("request", "spec")
        );
        assert_eq!(wish.block_bytes, 4096);
        for (block_size, good) in [(512, true), (4096, true), (1024, false), (-1, false)] {
            let spec = VolumeSpec {
                size: 1,
                block_size,
                ..Default::default()
            };
            assert_eq!(rules.wish(request(spec)).is_ok(), good, "{block_size}");
        }
        assert!(
            rules
                .wish(request(VolumeSpec {
                    ha_level: 6,
                    ..Default::default()
                }))
                .unwrap_err()
                .to_string()
                .contains("not 6")
        );
    }

    #[test]
    fn schedule_policies_are_named() {
        let named = |text: &str| policies(text).unwrap();
        assert_eq!(named(""), [""; 0]);
        assert_eq!(named("policy="), [""; 0]);
        assert_eq!(named("policy=a"), ["a"]);
        assert_eq!(named(" policy=a, b-c "), ["a", "b-c"]);
        assert_eq!(named("a,b"), ["a", "b"]);
        for times in [
            "- freq: daily\n  hour: 1",
            "periodic=60,5",
            "policy=a,,b",
            "@hourly",
        ] {
            let error = policies(times).unwrap_err().to_string();
            assert!(error.starts_with("spec.snapshot_schedule"), "{error}");
        }
    }

    #[test]
    fn an_update_refuses_what_is_present_even_if_it_is_zero() {
        let (rules, _) = rules();
        let spec = VolumeSpecUpdate {
            io_profile_opt: Some(IoProfileOpt::IoProfile(0)),
            ..Default::default()
        };
        let request = |spec| SdkVolumeUpdateRequest {
            volume_id: "v".into(),
            spec: Some(spec),
            ..Default::default()
        };
        assert!(
            rules
                .change(request(spec))
                .unwrap_err()
                .to_string()
                .starts_with("spec.io_profile ")
        );
        let spec = VolumeSpecUpdate {
            size_opt: Some(SizeOpt::Size(7)),
            ..Default::default()
        };
        assert_eq!(rules.change(request(spec)).unwrap().size_bytes, Some(7));
        let on = |nodes: &[&str], level: Option<i64>| {
            rules.change(request(VolumeSpecUpdate {
                ha_level_opt: level.map(HaLevelOpt::HaLevel),
                replica_set: Some(ReplicaSet {
                    nodes: nodes.iter().map(|n| (*n).to_owned()).collect(),
                    ..Default::default()
                }),
                ..Default::default()
            }))
        };
        let change = on(&["n3"], Some(3)).unwrap();
        assert_eq!(
            (change.replicas, change.node.as_deref()),
            (Some(3), Some("n3"))
        );
        assert!(on(&["n3"], None).is_err(), "comes, or goes?");
        assert!(on(&["n3", "n4"], Some(3)).is_err(), "one at a time");
    }
}
