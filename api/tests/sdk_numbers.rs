//! The SDK contract drifts: a field is renumbered or renamed in our `.proto` files, everything of ours still works, and the
//! public clients read garbage. A sample of the numbers, those a client's first hour uses and those that differ between
//! versions of the SDK, is pinned here.

use prost_reflect::{DescriptorPool, EnumDescriptor, MessageDescriptor};

const PACKAGE: &str = "openstorage.api";

fn pool() -> DescriptorPool {
    DescriptorPool::decode(keelblock_api::DESCRIPTORS).expect("our own descriptors decode")
}

fn message(pool: &DescriptorPool, name: &str) -> MessageDescriptor {
    pool.get_message_by_name(&format!("{PACKAGE}.{name}"))
        .unwrap_or_else(|| panic!("no message {name}"))
}

fn enumeration(pool: &DescriptorPool, name: &str) -> EnumDescriptor {
    pool.get_enum_by_name(&format!("{PACKAGE}.{name}"))
        .unwrap_or_else(|| panic!("no enum {name}"))
}

#[test]
fn fields_have_the_numbers_of_the_sdk() {
    let pool = pool();
    for (name, fields) in [
        (
            "SdkVolumeCreateRequest",
            &[("name", 1), ("spec", 2), ("labels", 3)][..],
        ),
        (
            "SdkVolumeUpdateRequest",
            &[("volume_id", 1), ("labels", 3), ("spec", 4)],
        ),
        (
            "SdkVolumeInspectResponse",
            &[("volume", 1), ("name", 2), ("labels", 3)],
        ),
        (
            "VolumeSpec",
            &[
                ("size", 2),
                ("format", 3),
                ("block_size", 4),
                ("ha_level", 5),
                ("cos", 6),
                ("io_profile", 7),
                ("volume_labels", 10),
                ("replica_set", 12),
                ("encrypted", 14),
                ("group", 21),
                ("nodiscard", 29),
                ("placement_strategy", 31),
                ("ownership", 33),
                ("io_throttle", 45),
                ("readahead", 47),
                ("topology_requirement", 48),
                ("near_sync_replication_strategy", 52),
                ("checksummed", 54),
            ],
        ),
        (
            "VolumeSpecUpdate",
            &[
                ("size", 2),
                ("ha_level", 5),
                ("replica_set", 12),
                ("queue_depth", 25),
                ("io_throttle", 40),
                ("readahead", 41),
                ("winshare", 42),
                ("near_sync_replication_strategy", 43),
            ],
        ),
        (
            "Volume",
            &[
                ("id", 1),
                ("locator", 5),
                ("spec", 7),
                ("usage", 8),
                ("status", 11),
                ("state", 12),
                ("attached_on", 13),
                ("device_path", 15),
                ("replica_sets", 19),
                ("runtime_state", 20),
            ],
        ),
        (
            "Stats",
            &[
                ("reads", 1),
                ("write_bytes", 6),
                ("io_progress", 7),
                ("discards", 11),
                ("unique_blocks", 14),
            ],
        ),
        (
            "StorageNode",
            &[
                ("id", 1),
                ("status", 7),
                ("disks", 9),
                ("pools", 10),
                ("hostname", 15),
                ("HWType", 18),
            ],
        ),
        (
            "StoragePool",
            &[("ID", 1), ("TotalSize", 7), ("Used", 8), ("uuid", 10)],
        ),
        (
            "SdkSchedulePolicyInterval",
            &[
                ("retain", 1),
                ("daily", 200),
                ("weekly", 201),
                ("monthly", 202),
                ("periodic", 203),
            ],
        ),
        (
            "SdkSchedulePolicyIntervalWeekly",
            &[("day", 1), ("hour", 2), ("minute", 3)],
        ),
        ("SdkRule", &[("services", 1), ("apis", 2)]),
        ("SdkRole", &[("name", 1), ("rules", 2)]),
        ("SdkRoleUpdateRequest", &[("role", 1)]),
        ("SdkRoleEnumerateResponse", &[("names", 1)]),
        (
            "SdkStoragePoolResizeRequest",
            &[
                ("uuid", 1),
                ("operation_type", 3),
                ("skip_wait_for_clean_volumes", 4),
                ("size", 200),
                ("percentage", 201),
            ],
        ),
        (
            "Alert",
            &[
                ("id", 1),
                ("alert_type", 3),
                ("resource_id", 6),
                ("cleared", 8),
                ("unique_tag", 10),
                ("count", 11),
                ("first_seen", 12),
            ],
        ),
        (
            "SdkAlertsQuery",
            &[
                ("resource_type_query", 1),
                ("alert_type_query", 2),
                ("resource_id_query", 3),
                ("opts", 4),
            ],
        ),
        (
            "SdkAlertsOption",
            &[
                ("min_severity_type", 1),
                ("is_cleared", 2),
                ("time_span", 3),
                ("count_span", 4),
            ],
        ),
        ("SdkWatchRequest", &[("volume_event", 1)]),
        ("SdkWatchResponse", &[("volume_event", 1)]),
        ("SdkVolumeWatchRequest", &[("labels", 1)]),
        ("SdkVolumeWatchResponse", &[("volume", 1), ("name", 2)]),
        (
            "SdkVolumeAttachRequest",
            &[("volume_id", 1), ("options", 2), ("driver_options", 3)],
        ),
    ] {
        let message = message(&pool, name);
        for &(field, number) in fields {
            let found = message
                .get_field_by_name(field)
                .unwrap_or_else(|| panic!("{name} has no {field}"));
            assert_eq!(found.number(), number, "{name}.{field}");
        }
    }
}

#[test]
fn enumerations_have_the_numbers_of_the_sdk() {
    let pool = pool();
    for (name, value, number) in [
        ("VolumeState", "VOLUME_STATE_DETATCHING", 5),
        ("VolumeState", "VOLUME_STATE_RESTORE", 9),
        ("VolumeStatus", "VOLUME_STATUS_DEGRADED", 4),
        ("Status", "STATUS_OK", 2),
        ("Status", "STATUS_POOLMAINTENANCE", 14),
        ("IoProfile", "IO_PROFILE_AUTO_JOURNAL", 9),
        ("SeverityType", "SEVERITY_TYPE_NOTIFY", 3),
        ("ResourceType", "RESOURCE_TYPE_POOL", 5),
        ("FSType", "FS_TYPE_EXT4", 2),
        ("CosType", "HIGH", 3),
        ("FastpathProtocol", "FASTPATH_PROTO_NVMEOF_TCP", 1),
        (
            "SdkServiceCapability.OpenStorageService.Type",
            "MOUNT_ATTACH",
            9,
        ),
        ("SdkVersion.Version", "Minor", 186),
    ] {
        let found = enumeration(&pool, name)
            .get_value_by_name(value)
            .unwrap_or_else(|| panic!("{name} has no {value}"));
        assert_eq!(found.number(), number, "{name}.{value}");
    }
}

#[test]
fn services_have_the_methods_of_the_sdk() {
    let pool = pool();
    for (name, methods) in [
        ("OpenStorageIdentity", &["Capabilities", "Version"][..]),
        ("OpenStorageCluster", &["InspectCurrent"]),
        (
            "OpenStorageNode",
            &[
                "Inspect",
                "InspectCurrent",
                "Enumerate",
                "EnumerateWithFilters",
                "VolumeBytesUsedByNode",
            ],
        ),
        (
            "OpenStorageVolume",
            &[
                "Create",
                "Clone",
                "Delete",
                "Inspect",
                "InspectWithFilters",
                "Update",
                "Stats",
                "CapacityUsage",
                "Enumerate",
                "EnumerateWithFilters",
                "SnapshotCreate",
                "SnapshotRestore",
                "SnapshotEnumerate",
                "SnapshotEnumerateWithFilters",
                "SnapshotScheduleUpdate",
                "VolumeCatalog",
            ],
        ),
        ("OpenStoragePool", &["Resize"]),
        ("OpenStorageWatch", &["Watch"]),
        (
            "OpenStorageRole",
            &["Create", "Enumerate", "Inspect", "Delete", "Update"],
        ),
        ("OpenStorageAlerts", &["EnumerateWithFilters", "Delete"]),
        (
            "OpenStorageMountAttach",
            &["Attach", "Detach", "Mount", "Unmount"],
        ),
    ] {
        let service = pool
            .get_service_by_name(&format!("{PACKAGE}.{name}"))
            .unwrap_or_else(|| panic!("no {name}"));
        let found: Vec<String> = service.methods().map(|m| m.name().to_owned()).collect();
        for method in methods {
            assert!(
                found.iter().any(|m| m == method),
                "{name} has no {method}: {found:?}"
            );
        }
    }
}
