//! Pods made by chance from a seed: ones that can be injected, broken ones, and JSON that is no pod at all.

use fastrand::Rng;
use serde_json::{Map, Value, json};

fn one(rng: &mut Rng, choices: &[Value]) -> Value {
    rng.choice(choices).cloned().unwrap_or_default()
}

/// A map with each field at even chance; a field whose value is null is often left out.
fn some(rng: &mut Rng, fields: &[(&str, &[Value])]) -> Value {
    let mut map = Map::new();
    for (name, choices) in fields {
        if rng.bool() {
            map.insert((*name).to_owned(), one(rng, choices));
        }
    }
    Value::Object(map)
}

fn with(mut map: Value, more: &Value) -> Value {
    json_patch::merge(&mut map, more);
    map
}

/// A pod that can be injected, with and without lockdown.
pub(crate) fn pod(rng: &mut Rng) -> Value {
    let confined = rng.u8(..3) == 0;
    let mut spec = some(
        rng,
        &[
            ("automountServiceAccountToken", &[json!(false), json!(true)]),
            ("runtimeClassName", &[json!("kata"), json!("")]),
            ("hostUsers", &[json!(false), json!(true)]),
            ("hostNetwork", &[json!(false)]),
            ("restartPolicy", &[json!("Always"), json!("Never"), json!("OnFailure")]),
            ("terminationGracePeriodSeconds", &[json!(0), json!(5), json!(30)]),
            ("nodeSelector", &[json!({"kubernetes.io/os": "linux"}), json!({})]),
            ("schedulingGates", &[json!([]), json!([{"name": "a.example/b"}])]),
            ("initContainers", &[Value::Null, json!([])]),
            ("volumes", &[Value::Null, json!([])]),
            (
                "securityContext",
                &[json!({}), json!({"fsGroup": 1000, "supplementalGroups": [1, 2]})],
            ),
        ],
    );
    let volumes = volumes(rng);
    let names: Vec<_> = volumes.iter().map(|volume| volume["name"].clone()).collect();
    if !volumes.is_empty() {
        spec["volumes"] = volumes.into();
    }
    let containers: Vec<_> = (0..rng.usize(1..4))
        .map(|index| container(rng, &format!("app-{index}"), &names, confined))
        .collect();
    spec["containers"] = containers.into();
    let inits: Vec<_> = (0..rng.usize(..4))
        .map(|index| init_container(rng, &format!("init-{index}"), &names, confined))
        .collect();
    if !inits.is_empty() {
        spec["initContainers"] = inits.into();
    }
    if confined {
        let context = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
        json_patch::merge(&mut spec["securityContext"], &context);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(rng), "spec": spec})
}

fn metadata(rng: &mut Rng) -> Value {
    let mut metadata = some(
        rng,
        &[
            ("namespace", &[json!("team-a"), json!("")]),
            ("finalizers", &[json!(["a.example/b"])]),
            (
                "annotations",
                &[
                    Value::Null,
                    json!({}),
                    json!({"a.example/b~c": "d", "e": ""}),
                    json!({"sandgate.dev/cpu-request": "20m", "sandgate.dev/log-level": "debug"}),
                ],
            ),
            (
                "ownerReferences",
                &[
                    json!([{"apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": "a", "uid": "u", "controller": true}]),
                ],
            ),
        ],
    );
    let name = one(rng, &[json!({"name": "alpha"}), json!({"generateName": "alpha-"})]);
    let labels = one(
        rng,
        &[
            json!({"agents.x-k8s.io/sandbox-name-hash": "8c736521"}),
            json!({"agents.x-k8s.io/sandbox-name-hash": "8c736521", "agents.x-k8s.io/warm-pool-sandbox": "p", "a/b": "c"}),
            json!({"sandgate.dev/inject": "enabled", "app": "x"}),
        ],
    );
    metadata["labels"] = labels;
    with(metadata, &name)
}

fn volumes(rng: &mut Rng) -> Vec<Value> {
    let sources = [
        json!({"emptyDir": {}}),
        json!({"emptyDir": {"medium": "Memory"}}),
        json!({"configMap": {"name": "a", "defaultMode": 420}}),
        json!({"secret": {"secretName": "a"}}),
        json!({"persistentVolumeClaim": {"claimName": "a"}}),
        json!({"projected": {"sources": [{"serviceAccountToken": {"audience": "vault", "path": "t"}}]}}),
        json!({"nfs": {"server": "a.example", "path": "/"}}),
    ];
    let mut volumes = Vec::new();
    for index in 0..rng.usize(..4) {
        volumes.push(with(one(rng, &sources), &json!({"name": format!("volume-{index}")})));
    }
    volumes
}

fn container(rng: &mut Rng, name: &str, volumes: &[Value], confined: bool) -> Value {
    let mut container = some(
        rng,
        &[
            ("image", &[json!("python:3"), json!("registry.example/a@sha256:00")]),
            ("command", &[json!(["sh", "-c", "sleep $(SECONDS)"])]),
            (
                "env",
                &[
                    json!([]),
                    json!([{"name": "A", "value": "$(B)"}]),
                    json!([{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
                ],
            ),
            (
                "ports",
                &[
                    json!([{"name": "http", "containerPort": 8888}]),
                    json!([{"name": "http", "containerPort": 80, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}]),
                ],
            ),
            (
                "resources",
                &[
                    json!({}),
                    json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}),
                ],
            ),
            (
                "securityContext",
                &[
                    json!({}),
                    json!({"runAsUser": 0}),
                    json!({"capabilities": {}}),
                    json!({"capabilities": {"drop": ["KILL"], "add": ["CHOWN"]}}),
                    json!({"capabilities": {"drop": ["NET_RAW"]}}),
                ],
            ),
            ("terminationMessagePolicy", &[json!("File")]),
        ],
    );
    container["name"] = name.into();
    if let Some(volume) = rng.choice(volumes).filter(|_| name.len() % 2 == 1) {
        container["volumeMounts"] = json!([{"name": volume, "mountPath": "/data"}]);
    }
    if confined {
        container["securityContext"] = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    }
    probes(rng, container)
}

fn init_container(rng: &mut Rng, name: &str, volumes: &[Value], confined: bool) -> Value {
    let mut container = container(rng, name, volumes, confined);
    if rng.bool() {
        container["restartPolicy"] = "Always".into();
    } else {
        // The API server takes these from native sidecars only.
        for field in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            container.as_object_mut().expect("a map").remove(field);
        }
    }
    container
}

fn probes(rng: &mut Rng, mut container: Value) -> Value {
    let has_port = container["ports"].is_array();
    let port = |rng: &mut Rng| {
        if has_port && rng.bool() {
            json!("http")
        } else {
            json!(8888)
        }
    };
    for place in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let handler = match rng.u8(..9) {
            0 => json!({"httpGet": {"port": port(rng)}}),
            1 => {
                json!({"httpGet": {"path": "/ready?a=$(b)", "port": port(rng), "scheme": "HTTP", "httpHeaders": [{"name": "X-A", "value": "b"}]}})
            }
            2 => json!({"tcpSocket": {"port": port(rng)}}),
            3 => json!({"exec": {"command": ["true"]}}),
            4 => json!({"grpc": {"port": 9090, "service": "a.b"}}),
            _ => continue,
        };
        let times = some(
            rng,
            &[
                ("timeoutSeconds", &[json!(1), json!(9)]),
                ("periodSeconds", &[json!(3)]),
            ],
        );
        container[place] = with(handler, &times);
    }
    match rng.u8(..6) {
        0 => container["lifecycle"] = json!({"preStop": {"httpGet": {"path": "/stop", "port": port(rng)}}}),
        1 => {
            let hooks = json!({"preStop": {"sleep": {"seconds": 1}}, "postStart": {"exec": {"command": ["true"]}}});
            container["lifecycle"] = hooks;
        }
        2 => container["lifecycle"] = json!({}),
        _ => {}
    }
    container
}

/// Any JSON, down to a depth, with words that mean something in a pod.
pub(crate) fn arbitrary(rng: &mut Rng, depth: u8) -> Value {
    let words = [
        "",
        "name",
        "metadata",
        "labels",
        "annotations",
        "spec",
        "containers",
        "initContainers",
        "volumes",
        "httpGet",
        "port",
        "sandgate",
        "sandgate-token",
        "sandgate.dev/inject",
        "sandgate.dev/shape",
        "enabled",
        "agents.x-k8s.io/sandbox-name-hash",
        "securityContext",
        "capabilities",
        "drop",
        "add",
        "livenessProbe",
        "lifecycle",
        "preStop",
        "env",
        "SANDGATE_APP_PROBES",
        "value",
        "~",
        "/",
        "~1",
        "ä\u{0}",
        "-1",
        "14480",
    ];
    let word = |rng: &mut Rng| rng.choice(words).unwrap_or_default().to_owned();
    match rng.u8(..if depth == 0 { 5 } else { 9 }) {
        0 => Value::Null,
        1 => rng.bool().into(),
        2 => one(
            rng,
            &[
                json!(0),
                json!(-1),
                json!(2102),
                json!(14480),
                json!(1.5),
                json!(u64::MAX),
                json!(i64::MIN),
            ],
        ),
        3 | 4 => word(rng).into(),
        5 | 6 => (0..rng.usize(..4)).map(|_| arbitrary(rng, depth - 1)).collect(),
        _ => (0..rng.usize(..6))
            .map(|_| (word(rng), arbitrary(rng, depth - 1)))
            .collect(),
    }
}

/// A pod of which something was replaced, removed or put in by chance.
pub(crate) fn broken(rng: &mut Rng) -> Value {
    let mut pod = pod(rng);
    for _ in 0..rng.usize(1..4) {
        damage(rng, &mut pod);
    }
    pod
}

fn damage(rng: &mut Rng, value: &mut Value) {
    let deeper = rng.u8(..5) > 0;
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let key = map.keys().nth(rng.usize(..map.len())).cloned().unwrap_or_default();
            if rng.u8(..8) == 0 {
                map.remove(&key);
            } else if let Some(value) = map.get_mut(&key) {
                damage(rng, value);
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let index = rng.usize(..items.len());
            if rng.u8(..8) == 0 {
                let copy = items.get(index).cloned().unwrap_or_default();
                items.push(copy);
            } else if let Some(value) = items.get_mut(index) {
                damage(rng, value);
            }
        }
        value => *value = arbitrary(rng, 2),
    }
}
