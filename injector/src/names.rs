//! Every name that is ours in a pod or a cluster. Nothing else may spell one of them out: the injector, the admission
//! policy, the NetworkPolicy and the gate must mean the same thing.

// The router knows these, too.
pub use sandgate_mesh::contract::{
    ENABLED, GATE_CONTAINER as CONTAINER, INJECT_LABEL, INJECTED, INJECTED_LABEL, SANDBOX_HASH_LABEL,
};

/// The value of [`INJECT_LABEL`] on a pod that opts out, where the operator allows that.
pub const DISABLED: &str = "disabled";
/// The API group of agent-sandbox.
pub const SANDBOX_GROUP: &str = "agents.x-k8s.io";
/// The kind of its sandboxes.
pub const SANDBOX_KIND: &str = "Sandbox";
/// Their name in paths.
pub const SANDBOX_PLURAL: &str = "sandboxes";
/// The annotation that says which shape a pod's gate has.
pub const SHAPE_ANNOTATION: &str = "sandgate.dev/shape";
/// Every label and annotation of ours starts so.
pub const OWN_PREFIX: &str = "sandgate.dev/";

/// The container that closes the pod's network before anything else runs.
pub const LOCKDOWN_CONTAINER: &str = "sandgate-lockdown";
/// Every container of ours.
pub const CONTAINERS: [&str; 2] = [CONTAINER, LOCKDOWN_CONTAINER];
/// The gate's program in its image.
pub const PROGRAM: &str = "/sandbox-sidecar";
/// The volume with the gate's `ServiceAccount` token.
pub const TOKEN_VOLUME: &str = "sandgate-token";
/// Where it is mounted: at the path where the API server would otherwise mount a token that opens the API.
pub const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The audience of that token; no other volume may ask for it.
pub const TOKEN_AUDIENCE: &str = "sandgate";
/// The volume with the gate's key, certificate and roots where the kubelet brings them; in place of [`TOKEN_VOLUME`], and
/// mounted at the same path.
pub const IDENTITY_VOLUME: &str = "sandgate-identity";
/// The entry of that volume with the key and the certificate.
pub const CREDENTIALS_ENTRY: &str = "credentials.pem";
/// The entry of that volume with the roots.
pub const BUNDLE_ENTRY: &str = "roots.pem";
/// The signer of Pod Certificates that the control plane is; no other volume may ask for it.
pub const SIGNER: &str = "sandgate.dev/gate";
/// The `ClusterTrustBundle` of that signer with the roots. The API server wants names of a signer's to begin so.
pub const TRUST_BUNDLE: &str = "sandgate.dev:gate:roots";
/// The memory-backed volume with the gate's identity and policy.
pub const STATE_VOLUME: &str = "sandgate-state";
/// Every volume of ours.
pub const VOLUMES: [&str; 3] = [TOKEN_VOLUME, IDENTITY_VOLUME, STATE_VOLUME];
/// Where the state is mounted.
pub const STATE_PATH: &str = "/run/sandgate";
/// The name of the mesh port.
pub const MESH_PORT_NAME: &str = "sandgate-mesh";
/// The name of the health port.
pub const HEALTH_PORT_NAME: &str = "sandgate-health";
/// The gate's user and group. No other container may run as this user: it could read the gate's memory.
pub const UID: i64 = 2102;

/// The argument that makes [`PROGRAM`] close the pod's network.
pub const LOCKDOWN_ARGUMENT: &str = "lockdown";
/// The argument that makes [`PROGRAM`] wait until the gate beside it holds its ports.
pub const AWAIT_PORTS_ARGUMENT: &str = "await-ports";

/// Annotation of a pod: CPU that its gate requests.
pub const CPU_REQUEST_ANNOTATION: &str = "sandgate.dev/cpu-request";
/// Annotation of a pod: CPU that its gate may use at most.
pub const CPU_LIMIT_ANNOTATION: &str = "sandgate.dev/cpu-limit";
/// Annotation of a pod: memory that its gate requests.
pub const MEMORY_REQUEST_ANNOTATION: &str = "sandgate.dev/memory-request";
/// Annotation of a pod: memory that its gate may use at most.
pub const MEMORY_LIMIT_ANNOTATION: &str = "sandgate.dev/memory-limit";
/// Annotation of a pod: how much its gate logs.
pub const LOG_LEVEL_ANNOTATION: &str = "sandgate.dev/log-level";
/// Every annotation that a pod's author may set.
pub const TENANT_ANNOTATIONS: [&str; 5] = [
    CPU_REQUEST_ANNOTATION,
    CPU_LIMIT_ANNOTATION,
    MEMORY_REQUEST_ANNOTATION,
    MEMORY_LIMIT_ANNOTATION,
    LOG_LEVEL_ANNOTATION,
];

/// Namespaces in which nothing is injected, whatever they are labelled: a cluster without these pods can't heal.
pub const EXCLUDED_NAMESPACES: [&str; 2] = ["kube-system", "kube-node-lease"];
/// The annotation of a mirror pod, which a kubelet makes of a file on its node. Anybody can write it.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// How the users begin that kubelets are.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// The group of kubelets.
pub const NODES_GROUP: &str = "system:nodes";
/// The namespace of our own programs, unless configured.
pub const DEFAULT_OWN_NAMESPACE: &str = "agent-sandbox-system";
/// The router's `ServiceAccount`, unless configured.
pub const DEFAULT_ROUTER_ACCOUNT: &str = "sandbox-router";
/// The injector's `ServiceAccount`, unless configured.
pub const DEFAULT_INJECTOR_ACCOUNT: &str = "sandbox-injector";

/// Who the injector is in `managedFields`, in Events, and in [`MANAGED_BY_LABEL`] of what it makes.
pub const FIELD_MANAGER: &str = "sandgate-injector";
/// The label that says which program looks after an object.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The label of our own pods that says that they are Sandgate's.
pub const APP_LABEL: &str = "app.kubernetes.io/name";
/// The value of [`APP_LABEL`].
pub const APP: &str = "sandgate";
/// The label of our own pods that says which part of Sandgate they are.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// The values of [`COMPONENT_LABEL`] of pods that dial gates.
pub const DIALING_COMPONENTS: [&str; 2] = [ROUTER_COMPONENT, "injector"];
/// The value of [`COMPONENT_LABEL`] of the router's pods.
pub const ROUTER_COMPONENT: &str = "router";
/// The label of a router's pod that is to get its identity from the control plane; its value is [`ENABLED`].
pub const ENROL_LABEL: &str = "sandgate.dev/enrol";
/// The label by which agent-sandbox's own `NetworkPolicy` knows router pods.
pub const UPSTREAM_ROUTER_LABEL: &str = "app";
/// The value of [`UPSTREAM_ROUTER_LABEL`].
pub const UPSTREAM_ROUTER: &str = "sandbox-router";
/// The label with a namespace's name, which the API server sets.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The `NetworkPolicy` in each opted-in namespace that admits the gate's ports only.
pub const NETWORK_POLICY: &str = "sandgate-gate";
/// The Secret with the root certificate, unless configured.
pub const DEFAULT_AUTHORITY_SECRET: &str = "sandgate-authority";
/// The entry of that Secret with the control plane's epoch, a decimal number.
pub const EPOCH_ENTRY: &str = "epoch";
/// The entry of that Secret that says how long the identities last that leaders have given.
pub const IDENTITIES_ENTRY: &str = "identities";
/// The annotation of that Secret in which the leader tells how the replacement of the root stands.
pub const ROTATION_ANNOTATION: &str = "sandgate.dev/root-rotation";
/// The Lease in the own namespace that says which replica talks to gates.
pub const LEASE: &str = "sandgate-injector";
/// The `ConfigMap` in the own namespace with the roots, from which routers know the control plane, unless configured.
pub const DEFAULT_ROOTS_CONFIG_MAP: &str = "sandgate-roots";
/// The entry of that `ConfigMap`.
pub const ROOTS_ENTRY: &str = "ca.crt";
/// The webhook's Service and its configurations, unless configured.
pub const DEFAULT_WEBHOOK: &str = "sandgate-injector";
