//! The configurations of a node's programs.

use crate::folder::Folder;
use crate::network::{BRIDGE, POD_NETWORK};
use anyhow::Context;
use serde_json::{Value, json};
use std::path::Path;

/// The node's name.
pub(crate) const NAME: &str = "sandgate-node";
/// Where Debian's package containernetworking-plugins has them.
const PLUGINS: &str = "/usr/lib/cni";

/// Writes them all. JSON is YAML.
pub(crate) fn write(folder: &Folder, cgroup: &str) -> anyhow::Result<()> {
    let plugins = folder.join("cni");
    std::fs::create_dir(&plugins).with_context(|| format!("making {}", plugins.display()))?;
    folder.write("cni/sandgate.conflist", &text(&pod_network(folder))?)?;
    folder.write("containerd.toml", &containerd(folder.path()))?;
    folder.write("kubelet.yaml", &text(&kubelet(folder, cgroup))?)?;
    folder.write("kube-proxy.yaml", &text(&kube_proxy(folder))?)
}

fn text(config: &Value) -> anyhow::Result<String> {
    serde_json::to_string_pretty(config).context("writing a configuration")
}

fn containerd(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"version = 3
imports = []
# It would make folders of its own in /opt.
disabled_plugins = ["io.containerd.internal.v1.opt"]
root = "{folder}/containerd"
state = "{folder}/containerd-state"

[grpc]
address = "{folder}/containerd.sock"

[ttrpc]
address = "{folder}/containerd.sock.ttrpc"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "local/pause:1"

[plugins."io.containerd.cri.v1.runtime"]
# Else a machine without CAP_SYS_RESOURCE starts no container.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{PLUGINS}"]
conf_dir = "{folder}/cni"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
    )
}

fn pod_network(folder: &Folder) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "sandgate",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": POD_NETWORK}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": folder.join("addresses"),
            },
        }],
    })
}

fn kubelet(folder: &Folder, cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": false},
            "x509": {"clientCAFile": folder.join("ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": format!("unix://{}", folder.join("containerd.sock").display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        // Machines that mount both versions.
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        // How full the machine is, is none of a test's business.
        "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "podLogsDir": folder.join("pods"),
        "volumePluginDir": folder.join("volume-plugins"),
        // There is no DNS, and names are refused at once.
        "resolvConf": "",
    })
}

fn kube_proxy(folder: &Folder) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": POD_NETWORK,
        "clientConnection": {"kubeconfig": folder.join("kube-proxy.kubeconfig")},
        // The limits are the machine's, not the namespace's.
        "conntrack": {"maxPerCore": 0, "min": 0},
    })
}
