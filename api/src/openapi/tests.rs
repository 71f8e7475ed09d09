use super::*;

const INSPECT: Route<'_> = Route {
    method: "GET",
    path: "/v1/volumes/inspect/{volume_id}",
    rpc: "openstorage.api.OpenStorageVolume/Inspect",
};
const CREATE: Route<'_> = Route {
    method: "POST",
    path: "/v1/volumes",
    rpc: "openstorage.api.OpenStorageVolume/Create",
};

fn made() -> Value {
    document("Keelblock", "1", &[INSPECT, CREATE]).unwrap()
}

#[test]
fn parameters_come_from_path_query_and_body() {
    let document = made();
    let inspect = &document["paths"][INSPECT.path]["get"];
    assert_eq!(inspect["operationId"], "OpenStorageVolume_Inspect");
    let parameters = inspect["parameters"].as_array().unwrap();
    assert_eq!(
        parameters[0],
        json!({ "name": "volume_id", "in": "path", "required": true, "type": "string" })
    );
    assert_eq!(
        (&parameters[1]["name"], &parameters[1]["in"]),
        (&json!("options.deep"), &json!("query"))
    );
    assert_eq!(parameters.len(), 2);
    let create = &document["paths"]["/v1/volumes"]["post"]["parameters"][0];
    assert_eq!(create["in"], "body");
    assert_eq!(
        create["schema"]["$ref"],
        "#/definitions/SdkVolumeCreateRequest"
    );
}

#[test]
fn types_are_as_the_gateway_writes_them() {
    let document = made();
    let spec = &document["definitions"]["VolumeSpec"];
    assert_eq!(spec["properties"]["size"]["type"], "string");
    assert_eq!(
        spec["properties"]["size"]["description"],
        "Bytes; space is taken when written."
    );
    assert_eq!(spec["properties"]["queue_depth"]["type"], "integer");
    assert_eq!(
        spec["properties"]["cos"]["enum"],
        json!(["NONE", "LOW", "MEDIUM", "HIGH"])
    );
    assert_eq!(
        spec["properties"]["volume_labels"]["additionalProperties"],
        json!({ "type": "string" })
    );
    assert!(
        spec["description"]
            .as_str()
            .unwrap()
            .starts_with("The wish of the user.")
    );
    assert_eq!(
        document["definitions"]["Volume"]["properties"]["ctime"]["format"],
        "date-time"
    );
}

/// Every reference leads to a definition, and no definition is left unwritten.
#[test]
fn the_document_is_closed() {
    fn references(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                into.extend(
                    object
                        .get("$ref")
                        .and_then(Value::as_str)
                        .map(str::to_owned),
                );
                object.values().for_each(|v| references(v, into));
            }
            Value::Array(items) => items.iter().for_each(|v| references(v, into)),
            _ => {}
        }
    }
    let document = made();
    let mut found = Vec::new();
    references(&document, &mut found);
    // Reached from the request through spec, placement strategy and rule only.
    assert!(
        found
            .iter()
            .any(|r| r == "#/definitions/LabelSelectorRequirement"),
        "{found:?}"
    );
    for reference in found {
        let name = reference.strip_prefix("#/definitions/").unwrap();
        assert!(document["definitions"][name].is_object(), "{reference}");
    }
}

#[test]
fn mistakes_in_the_table_are_errors() {
    let error = |route: Route<'_>| document("", "", &[CREATE, route]).unwrap_err();
    let wrong = Route {
        rpc: "openstorage.api.OpenStorageVolume/Inspct",
        ..INSPECT
    };
    assert!(matches!(error(wrong), OpenApiError::NoRpc { .. }));
    let wrong = Route {
        method: "FETCH",
        ..INSPECT
    };
    assert!(matches!(error(wrong), OpenApiError::Method { .. }));
    let wrong = Route {
        path: "/v1/volumes/inspect/{id}",
        ..INSPECT
    };
    let expected = OpenApiError::Parameter {
        path: wrong.path.into(),
        parameter: "id".into(),
    };
    assert_eq!(error(wrong), expected);
    assert!(matches!(error(CREATE), OpenApiError::Twice { .. }));
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    assert!(PAGE.contains("/swagger.json"));
    for outside in ["http://", "https://", "src=\"//", "@import"] {
        assert!(!PAGE.contains(outside), "{outside}");
    }
}
