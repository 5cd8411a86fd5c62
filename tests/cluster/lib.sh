# Shared by run and exec: where things are. Sourced.
# shellcheck shell=bash

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sandgate/kube
kept=$cache/kept

die() {
    echo "tests/cluster: $*" >&2
    exit 1
}

# Where cargo puts what it builds.
target_directory() {
    (cd "$root" && cargo metadata --format-version 1 --no-deps --locked) |
        sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}

# The version of a module that modules/NAME/go.mod requires.
pinned() { # pinned NAME MODULE
    sed -n "s|^require $2 ||p" "$here/modules/$1/go.mod"
}

kubernetes_version=$(pinned kubernetes k8s.io/kubernetes)
etcd_version=$(pinned etcd go.etcd.io/etcd/server/v3)
agent_sandbox_version=$(pinned agent-sandbox sigs.k8s.io/agent-sandbox)
containerd_version=$(pinned containerd github.com/containerd/containerd/v2)
kube_router_version=$(pinned kube-router github.com/cloudnativelabs/kube-router/v2)
kubernetes_built=$cache/kubernetes-$kubernetes_version
kubernetes=$kubernetes_built
etcd=$cache/etcd-$etcd_version
agent_sandbox=$cache/agent-sandbox-$agent_sandbox_version
# Beside the module's files, which are there or not as a whole.
agent_sandbox_controller=$cache/agent-sandbox-controller-$agent_sandbox_version
agent_sandbox_router=$cache/agent-sandbox-router-$agent_sandbox_version
containerd=$cache/containerd-$containerd_version
kube_router=$cache/kube-router-$kube_router_version
