use std::collections::HashMap;

use super::*;
use crate::openstorage::{self as sdk, volume_spec_update::*};

fn json<M: Message + Name>(message: &M) -> String {
    String::from_utf8(Codec::new().encode(message).unwrap()).unwrap()
}

fn parameters(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect()
}

fn volume() -> sdk::Volume {
    sdk::Volume {
        id: "v1".into(),
        usage: u64::MAX,
        state: sdk::VolumeState::Attached.into(),
        ctime: Some(prost_types::Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
        spec: Some(sdk::VolumeSpec {
            size: 1 << 40,
            ha_level: 2,
            queue_depth: 128,
            cos: sdk::CosType::High.into(),
            volume_labels: HashMap::from([("app".into(), "db".into())]),
            ..sdk::VolumeSpec::default()
        }),
        ..sdk::Volume::default()
    }
}

#[test]
fn messages_look_as_the_gateway_writes_them() {
    assert_eq!(json(&sdk::Volume::default()), "{}");
    assert_eq!(
        json(&volume()),
        concat!(
            r#"{"id":"v1","ctime":"2023-11-14T22:13:20Z","spec":{"size":"1099511627776","ha_level":"2","cos":"HIGH","#,
            r#""volume_labels":{"app":"db"},"queue_depth":128},"usage":"18446744073709551615","state":"VOLUME_STATE_ATTACHED"}"#
        )
    );
    // Presence is kept: an update to zero is not the absence of an update.
    let update = sdk::VolumeSpecUpdate {
        ha_level_opt: Some(HaLevelOpt::HaLevel(0)),
        nodiscard_opt: Some(NodiscardOpt::Nodiscard(false)),
        ..sdk::VolumeSpecUpdate::default()
    };
    assert_eq!(json(&update), r#"{"ha_level":"0","nodiscard":false}"#);
}

#[test]
fn what_is_written_is_read() {
    let codec = Codec::new();
    let written = codec.encode(&volume()).unwrap();
    assert_eq!(codec.decode::<sdk::Volume>(&written).unwrap(), volume());
    assert_eq!(
        codec.decode::<sdk::Volume>(b" \n").unwrap(),
        sdk::Volume::default()
    );
}

#[test]
fn other_forms_of_proto3_are_read() {
    let body = br#"{"name": "v", "spec": {"size": 4096, "haLevel": "3", "cos": 2, "ioProfile": "IO_PROFILE_DB"}}"#;
    let request: sdk::SdkVolumeCreateRequest = Codec::new().decode(body).unwrap();
    let spec = request.spec.unwrap();
    assert_eq!(
        (spec.size, spec.ha_level, spec.cos(), spec.io_profile()),
        (4096, 3, sdk::CosType::Medium, sdk::IoProfile::Db)
    );
}

#[test]
fn a_wrong_field_is_named() {
    let codec = Codec::new();
    for (body, expected) in [
        (r#"{"nmae": "v"}"#, r#"unknown field "nmae""#),
        (
            r#"{"name": "v", "spec": {"size": 1, "sizze": 2}}"#,
            r#"unknown field "spec.sizze""#,
        ),
        (
            r#"{"spec": {"placement_strategy": {"replica_affinity": [{}, {"match_expressions": [{"kee": "k"}]}]}}}"#,
            r#"unknown field "spec.placement_strategy.replica_affinity[1].match_expressions[0].kee""#,
        ),
        ("[]", "the body must be a JSON object"),
    ] {
        let error = codec
            .decode::<sdk::SdkVolumeCreateRequest>(body.as_bytes())
            .unwrap_err();
        assert_eq!(error.to_string(), expected, "{body}");
    }
    for (body, field) in [
        (r#"{"name": 5}"#, "name"),
        (r#"{"spec": {"size": -1}}"#, "spec.size"),
        (r#"{"spec": {"size": "4 GiB"}}"#, "spec.size"),
        (r#"{"spec": {"cos": "HIGHEST"}}"#, "spec.cos"),
        (r#"{"spec": []}"#, "spec"),
        (r#"{"labels": {"a": 1}}"#, "labels"),
        (r#"{"spec": {"sticky": "yes"}}"#, "spec.sticky"),
    ] {
        let error = codec
            .decode::<sdk::SdkVolumeCreateRequest>(body.as_bytes())
            .unwrap_err();
        let named = matches!(&error, JsonError::Value { field: found, .. } if found == field);
        assert!(named, "{body}: {error:?}");
    }
    let error = codec
        .decode::<sdk::SdkVolumeCreateRequest>(b"{\"name\": ")
        .unwrap_err();
    assert!(matches!(error, JsonError::Syntax(_)));
    let deep = "{\"children\":[".repeat(5000);
    assert!(matches!(
        codec.decode::<sdk::Catalog>(deep.as_bytes()),
        Err(JsonError::Syntax(_))
    ));
}

#[test]
fn parameters_set_fields() {
    let codec = Codec::new();
    let pairs = parameters(&[("volume_id", "v1"), ("options.deep", "true")]);
    let request: sdk::SdkVolumeInspectRequest = codec.request(b"", &pairs).unwrap();
    assert_eq!(
        (request.volume_id.as_str(), request.options.unwrap().deep),
        ("v1", true)
    );

    let pairs = parameters(&[
        ("labels[app]", "db"),
        ("labels.zone", "1"),
        ("group.id", "g"),
        ("name", "new"),
    ]);
    let request: sdk::SdkVolumeEnumerateWithFiltersRequest =
        codec.request(br#"{"name": "old"}"#, &pairs).unwrap();
    assert_eq!(request.name, "new");
    assert_eq!(request.group.unwrap().id, "g");
    assert_eq!(
        request.labels,
        HashMap::from([("app".into(), "db".into()), ("zone".into(), "1".into())])
    );

    let pairs = parameters(&[("node_id", "n"), ("ids", "1"), ("ids", "2")]);
    let request: sdk::SdkVolumeBytesUsedRequest = codec.request(b"", &pairs).unwrap();
    assert_eq!(request.ids, [1, 2]);

    let pairs = parameters(&[
        ("spec.cos", "HIGH"),
        ("spec.haLevel", "3"),
        ("spec.format", "2"),
    ]);
    let body = br#"{"spec": {"haLevel": "1"}}"#;
    let spec = codec
        .request::<sdk::SdkVolumeCreateRequest>(body, &pairs)
        .unwrap()
        .spec
        .unwrap();
    assert_eq!(
        (spec.cos(), spec.ha_level, spec.format()),
        (sdk::CosType::High, 3, sdk::FsType::Ext4)
    );
}

#[test]
fn wrong_parameters_are_named() {
    let codec = Codec::new();
    for (name, value, expected) in [
        ("volume", "v", "unknown field \"volume\""),
        ("options.deeper", "true", "unknown field \"options.deeper\""),
        (
            "options.deep",
            "yes",
            "field \"options.deep\": \"yes\" is neither true nor false",
        ),
        (
            "options",
            "x",
            "field \"options\": a parameter sets a single value, not a message",
        ),
        ("volume_id.x", "v", "unknown field \"volume_id.x\""),
        ("volume_id[x]", "v", "unknown field \"volume_id[x]\""),
    ] {
        let error = codec
            .request::<sdk::SdkVolumeInspectRequest>(b"", &parameters(&[(name, value)]))
            .unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let body = br#"{"options": 5}"#;
    let pairs = parameters(&[("options.deep", "true")]);
    assert!(
        codec
            .request::<sdk::SdkVolumeInspectRequest>(body, &pairs)
            .is_err()
    );
}
