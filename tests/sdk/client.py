"""The public Python client of the OpenStorage SDK (PyPI: libopenstorage-openstorage) against Keelblock.

    client.py contracts DESCRIPTORS          compares our contracts (a FileDescriptorSet) with the client's: names and numbers
    client.py life ENDPOINT                  drives the life of a volume, its snapshots and schedules through the client

Prints what differs or fails, and exits with 1 then.
"""

import sys

import grpc
from google.protobuf import descriptor_pb2
from openstorage import api_pb2, api_pb2_grpc

PACKAGE = "openstorage.api"
# What SDK 0.186 has and the newest client (0.101) does not know, so that it cannot say whether we have it right. Anything else that we have beyond it is an error.
NEWER = {
    "DefragJob",
    "FastpathConfig.verbose = 8",
    "Job.Type.DEFRAG = 5",
    "Job.defrag = 403",
    "OpenStoragePool.CreateRebalanceSchedule",
    "OpenStoragePool.DeleteRebalanceSchedule",
    "OpenStoragePool.GetRebalanceSchedule",
    "OpenStorageNode.RelaxedReclaimPurge",
    "OpenStorageWatch",
    "OpenStorageNode.VolumeBytesUsedByNode",
    "PureBlockSpec.pod_name = 3",
    "PureFileSpec.nfs_endpoint = 3",
    "RebalanceScheduleInfo",
    "ReplicaSet.id = 3",
    "SdkCreateRebalanceScheduleRequest",
    "SdkCreateRebalanceScheduleResponse",
    "SdkDeleteRebalanceScheduleRequest",
    "SdkDeleteRebalanceScheduleResponse",
    "SdkGetRebalanceScheduleRequest",
    "SdkGetRebalanceScheduleResponse",
    "SdkStorageRebalanceRequest.Mode",
    "SdkStorageRebalanceRequest.mode = 7",
    "SdkDiagsCollectRequest.filename = 7",
    "SdkNodeRelaxedReclaimPurgeRequest",
    "SdkNodeRelaxedReclaimPurgeResponse",
    "SdkVolumeBytesUsedRequest",
    "SdkVolumeBytesUsedResponse",
    "SdkVolumeWatchRequest",
    "SdkVolumeWatchRequest.LabelsEntry",
    "SdkVolumeWatchResponse",
    "SdkWatchRequest",
    "SdkWatchResponse",
    "Sharedv4ServiceSpec.external_access = 3",
    "Stats.discard_bytes = 13",
    "Stats.discard_ms = 12",
    "Stats.discards = 11",
    "StorageNode.cluster_domain = 23",
    "StorageNode.cpu_cores = 21",
    "StorageNode.non_quorum_member = 22",
    "StorageResource.cloud_drive_type = 16",
    "StorageResource.volume_spec = 17",
    "VolumeBytesUsed",
    "VolumeBytesUsedByNode",
    "VolumeSpec.checksum_clone_id = 53",
    "VolumeSpec.checksummed = 54",
    "VolumeSpec.number_of_chunks = 46",
    "VolumeSpec.readahead = 47",
    "VolumeSpec.winshare = 49",
    "VolumeSpecUpdate.checksummed = 44",
    "VolumeSpecUpdate.pure_nfs_endpoint = 45",
    "VolumeSpecUpdate.winshare = 42",
}
# Where SDK 0.186 is right and this client is older: message, number.
CHANGED = {("VolumeSpecUpdate", 41), ("VolumeSpecUpdate", 43)}
# The version is in it.
VERSION = "SdkVersion.Version"


def theirs():
    """The client's file, as a descriptor's message."""
    described = descriptor_pb2.FileDescriptorProto()
    api_pb2.DESCRIPTOR.CopyToProto(described)
    return described


def by_name(described, prefix=""):
    """All messages and enumerations below, nested ones as Outer.Inner."""
    messages, enums = {}, {}
    nested = described.message_type if prefix == "" else described.nested_type
    for message in nested:
        name = prefix + message.name
        messages[name] = message
        inner_messages, inner_enums = by_name(message, name + ".")
        messages.update(inner_messages)
        enums.update(inner_enums)
    for enum in described.enum_type:
        enums[prefix + enum.name] = enum
    return messages, enums


def oneof(message, field):
    """The choice that a field is part of; none for a field that is only optional."""
    if not field.HasField("oneof_index") or field.proto3_optional:
        return None
    return message.oneof_decl[field.oneof_index].name


def beyond(what, wrong):
    """What the client does not have."""
    if what not in NEWER:
        wrong.append(f"{what}: the client has none")


def compare_enum(name, ours, public):
    here = {(v.name, v.number) for v in ours.value}
    there = {(v.name, v.number) for v in public.value}
    wrong = [f"enum {name} has no {v} = {n}" for v, n in sorted(there - here)]
    for value, number in sorted(here - there):
        beyond(f"{name}.{value} = {number}", wrong)
    return wrong


def compare_message(name, ours, public):
    wrong = []
    known = {f.number: f for f in public.field}
    for field in ours.field:
        if (name, field.number) in CHANGED:
            continue
        other = known.get(field.number)
        if other is None:
            beyond(f"{name}.{field.name} = {field.number}", wrong)
            continue
        for what, here, there in [
            ("name", field.name, other.name),
            ("type", field.type, other.type),
            ("label", field.label, other.label),
            ("type's name", field.type_name, other.type_name),
            ("oneof", oneof(ours, field), oneof(public, other)),
        ]:
            if here != there:
                wrong.append(f"{name}, field {field.number}: {what} is {here}, the client's {there}")
    missing = set(known) - {f.number for f in ours.field}
    for number in sorted(missing):
        if (name, number) not in CHANGED:
            wrong.append(f"{name} has no field {known[number].name} = {number}")
    return wrong


def contracts(path):
    files = descriptor_pb2.FileDescriptorSet()
    with open(path, "rb") as opened:
        files.ParseFromString(opened.read())
    public = theirs()
    messages, enums = by_name(public)
    services = {s.name: s for s in public.service}
    wrong, seen = [], [0, 0, 0]
    for ours in (f for f in files.file if f.package == PACKAGE):
        our_messages, our_enums = by_name(ours)
        for name, message in our_messages.items():
            seen[0] += 1
            if name in messages:
                wrong += compare_message(name, message, messages[name])
            else:
                beyond(name, wrong)
        for name, enum in our_enums.items():
            seen[1] += 1
            if name == VERSION:
                continue
            if name in enums:
                wrong += compare_enum(name, enum, enums[name])
            else:
                beyond(name, wrong)
        for service in ours.service:
            if service.name not in services:
                beyond(service.name, wrong)
                continue
            there = {m.name: m for m in services[service.name].method}
            for method in service.method:
                seen[2] += 1
                name = f"{service.name}.{method.name}"
                other = there.get(method.name)
                if other is None:
                    beyond(name, wrong)
                    continue
                shape = [(m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in (method, other)]
                if shape[0] != shape[1]:
                    wrong.append(f"{name} is {shape[0]}, the client's {shape[1]}")
    print("compared: {} messages, {} enumerations, {} methods".format(*seen))
    if min(seen) == 0:
        wrong.append("nothing was compared")
    return wrong


def fails(code, call, request):
    """What a call that must fail says; an error if it does not, or otherwise."""
    try:
        call(request, timeout=20)
    except grpc.RpcError as error:
        if error.code() != code:
            raise AssertionError(f"{error.code()} instead of {code}: {error.details()}") from error
        return error.details()
    raise AssertionError(f"it should fail with {code}: {request}")


def life(endpoint):
    channel = grpc.insecure_channel(endpoint)
    grpc.channel_ready_future(channel).result(timeout=20)
    identity = api_pb2_grpc.OpenStorageIdentityStub(channel)
    version = identity.Version(api_pb2.SdkIdentityVersionRequest(), timeout=20)
    assert version.sdk_version.major == 0 and version.sdk_version.minor == 186, version
    node = api_pb2_grpc.OpenStorageNodeStub(channel)
    current = node.InspectCurrent(api_pb2.SdkNodeInspectCurrentRequest(), timeout=20)
    assert current.node.id, current

    volumes = api_pb2_grpc.OpenStorageVolumeStub(channel)
    spec = api_pb2.VolumeSpec(size=32 << 20)
    request = api_pb2.SdkVolumeCreateRequest(name="py", spec=spec, labels={"by": "client"})
    made = volumes.Create(request, timeout=20).volume_id
    assert volumes.Create(request, timeout=20).volume_id == made, "the same again is the same"
    other = api_pb2.SdkVolumeCreateRequest(name="py", spec=api_pb2.VolumeSpec(size=64 << 20))
    fails(grpc.StatusCode.ALREADY_EXISTS, volumes.Create, other)
    unnamed = api_pb2.SdkVolumeCreateRequest(spec=spec)
    fails(grpc.StatusCode.INVALID_ARGUMENT, volumes.Create, unnamed)
    refused = api_pb2.SdkVolumeCreateRequest(name="x", spec=api_pb2.VolumeSpec(size=1 << 20, cascaded=True))
    said = fails(grpc.StatusCode.INVALID_ARGUMENT, volumes.Create, refused)
    assert "cascaded" in said, said
    found = volumes.Inspect(api_pb2.SdkVolumeInspectRequest(volume_id=made), timeout=20)
    assert found.volume.spec.size == 32 << 20 and found.labels["by"] == "client", found
    listed = volumes.Enumerate(api_pb2.SdkVolumeEnumerateRequest(), timeout=20)
    assert made in listed.volume_ids, listed

    mounts = api_pb2_grpc.OpenStorageMountAttachStub(channel)
    attached = mounts.Attach(api_pb2.SdkVolumeAttachRequest(volume_id=made), timeout=20)
    assert attached.device_path, attached
    found = volumes.Inspect(api_pb2.SdkVolumeInspectRequest(volume_id=made), timeout=20)
    assert found.volume.state == api_pb2.VOLUME_STATE_ATTACHED, found
    delete = api_pb2.SdkVolumeDeleteRequest(volume_id=made)
    fails(grpc.StatusCode.FAILED_PRECONDITION, volumes.Delete, delete)
    larger = api_pb2.SdkVolumeUpdateRequest(volume_id=made, spec=api_pb2.VolumeSpecUpdate(size=48 << 20))
    volumes.Update(larger, timeout=20)
    stats = volumes.Stats(api_pb2.SdkVolumeStatsRequest(volume_id=made), timeout=20)
    assert stats.HasField("stats"), stats

    snapshot = api_pb2.SdkVolumeSnapshotCreateRequest(volume_id=made, name="py-snap")
    snapshot = volumes.SnapshotCreate(snapshot, timeout=20).snapshot_id
    enumerate_snapshots = api_pb2.SdkVolumeSnapshotEnumerateRequest(volume_id=made)
    assert snapshot in volumes.SnapshotEnumerate(enumerate_snapshots, timeout=20).volume_snapshot_ids
    clone = api_pb2.SdkVolumeCloneRequest(name="py-clone", parent_id=snapshot)
    clone = volumes.Clone(clone, timeout=20).volume_id
    usage = volumes.CapacityUsage(api_pb2.SdkVolumeCapacityUsageRequest(volume_id=made), timeout=20)
    assert usage.HasField("capacity_usage_info"), usage

    alerts = api_pb2_grpc.OpenStorageAlertsStub(channel)
    query = api_pb2.SdkAlertsResourceTypeQuery(resource_type=api_pb2.RESOURCE_TYPE_POOL)
    request = api_pb2.SdkAlertsEnumerateWithFiltersRequest(queries=[api_pb2.SdkAlertsQuery(resource_type_query=query)])
    assert len(list(alerts.EnumerateWithFilters(request, timeout=20))) == 1, "a stream of one"

    policies = api_pb2_grpc.OpenStorageSchedulePolicyStub(channel)
    weekly = api_pb2.SdkSchedulePolicyIntervalWeekly(day=api_pb2.SdkTimeWeekdayFriday, hour=23, minute=5)
    interval = api_pb2.SdkSchedulePolicyInterval(retain=3, weekly=weekly)
    policy = api_pb2.SdkSchedulePolicy(name="py-policy", schedules=[interval])
    policies.Create(api_pb2.SdkSchedulePolicyCreateRequest(schedule_policy=policy), timeout=20)
    inspect = api_pb2.SdkSchedulePolicyInspectRequest(name="py-policy")
    assert policies.Inspect(inspect, timeout=20).policy == policy
    schedule = api_pb2.SdkVolumeSnapshotScheduleUpdateRequest(volume_id=made, snapshot_schedule_names=["py-policy"])
    volumes.SnapshotScheduleUpdate(schedule, timeout=20)
    drop = api_pb2.SdkSchedulePolicyDeleteRequest(name="py-policy")
    fails(grpc.StatusCode.FAILED_PRECONDITION, policies.Delete, drop)
    none = api_pb2.SdkVolumeSnapshotScheduleUpdateRequest(volume_id=made)
    volumes.SnapshotScheduleUpdate(none, timeout=20)
    policies.Delete(drop, timeout=20)

    mounts.Detach(api_pb2.SdkVolumeDetachRequest(volume_id=made), timeout=20)
    back = api_pb2.SdkVolumeSnapshotRestoreRequest(volume_id=made, snapshot_id=snapshot)
    volumes.SnapshotRestore(back, timeout=20)
    for gone in (clone, snapshot, made, made):
        volumes.Delete(api_pb2.SdkVolumeDeleteRequest(volume_id=gone), timeout=20)
    fails(grpc.StatusCode.NOT_FOUND, volumes.Inspect, api_pb2.SdkVolumeInspectRequest(volume_id=made))
    print("the life of a volume: as it should be")
    return []


def main():
    what, argument = sys.argv[1:]
    wrong = {"contracts": contracts, "life": life}[what](argument)
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
