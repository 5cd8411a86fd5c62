# Shared by run and by tests/conformance/go-router: programs built from Go modules into the cache. Sourced after lib.sh.
# shellcheck shell=bash disable=SC2154

need_go() { # need_go MODULE WHAT_FOR
    local wanted found
    wanted=$(sed -n 's/^go //p' "$here/modules/$1/go.mod")
    found=$(cd "$here/modules/$1" && go env GOVERSION 2>/dev/null) || true
    if [ "$(printf '%s\n' "go$wanted" "${found:-go0}" | sort -V | tail -1)" != "${found:-go0}" ]; then
        local instead=
        if [ "$1" = kubernetes ] || [ "$1" = etcd ]; then
            instead=", or set KUBEBUILDER_ASSETS to a folder with kube-apiserver and etcd"
        fi
        die "Go ${wanted%.0} or later is needed to build $2, and ${found:-no go} is in PATH. Install it from" \
            "https://go.dev/dl (distributions' packages are often older)$instead."
    fi
}

# Runs a command while nobody else fills the cache. What it makes appears there complete, by a rename.
locked() {
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    if ! flock --nonblock 9; then
        echo "waiting for another run that fills $cache" >&2
        flock --timeout 5400 9 || die "another run has held $cache/lock for 90 minutes"
    fi
    "$@"
    exec 9>&-
}

# Builds a program of a Go module, unless it is there. A build that was cut short goes on where it was: Go caches.
build() { # build MODULE FILE PACKAGE [FLAG...]
    local module=$1 file=$2 package=$3
    shift 3
    if [ -x "$file" ]; then return; fi
    need_go "$module" "$(basename "$file")"
    echo "building $(basename "$file") of $package" >&2
    mkdir -p "$(dirname "$file")"
    (cd "$here/modules/$module" && CGO_ENABLED=0 go build -trimpath -o "$file.new" "$@" "$package")
    mv -- "$file.new" "$file"
}

build_kubernetes() { # build_kubernetes PROGRAM FOLDER
    local version=k8s.io/component-base/version major minor
    IFS=. read -r major minor _ <<<"${kubernetes_version#v}"
    build kubernetes "$2/$1" "k8s.io/kubernetes/cmd/$1" -ldflags \
        "-s -w -X $version.gitVersion=$kubernetes_version -X $version.gitMajor=$major -X $version.gitMinor=$minor"
}

build_etcd() {
    build etcd "$etcd/etcd" go.etcd.io/etcd/server/v3 -ldflags "-s -w"
}

# The module's files: upstream's custom resource definitions, manifests and examples.
unpack_agent_sandbox() {
    if [ -d "$agent_sandbox" ]; then return; fi
    need_go agent-sandbox "agent-sandbox (its files are in a Go module)"
    local module
    (cd "$here/modules/agent-sandbox" && go mod download sigs.k8s.io/agent-sandbox)
    module=$(cd "$here/modules/agent-sandbox" && go list -m -f '{{.Dir}}' sigs.k8s.io/agent-sandbox)
    rm -rf -- "$agent_sandbox.new"
    cp -r -- "$module" "$agent_sandbox.new"
    chmod -R u+w -- "$agent_sandbox.new"
    mv -- "$agent_sandbox.new" "$agent_sandbox"
}

# The Go router, to hold ours beside it.
build_agent_sandbox_router() {
    build agent-sandbox "$agent_sandbox_router/sandbox-router" sigs.k8s.io/agent-sandbox/sandbox-router/cmd -ldflags "-s -w"
}

# What a node is made of besides the API server and etcd.
build_node() {
    local program
    for program in containerd containerd-shim-runc-v2 ctr; do
        build containerd "$containerd/$program" "github.com/containerd/containerd/v2/cmd/$program" \
            -ldflags "-s -w" -tags "no_btrfs no_zfs no_devmapper"
    done
    for program in kube-controller-manager kube-scheduler kubelet kube-proxy; do
        build_kubernetes "$program" "$kubernetes_built"
    done
    build agent-sandbox "$agent_sandbox_controller/agent-sandbox-controller" \
        sigs.k8s.io/agent-sandbox/cmd/agent-sandbox-controller -ldflags "-s -w"
    build kube-router "$kube_router/kube-router" github.com/cloudnativelabs/kube-router/v2/cmd/kube-router -ldflags "-s -w"
}

# What a node runs that Debian has.
need_debian_packages() {
    [ "$(id -u)" = 0 ] || die "a node needs root: it mounts file systems and makes network interfaces, in namespaces of its own"
    local missing=() program
    for program in runc iptables ipset conntrack buildah mmdebstrap; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    command -v ip >/dev/null || missing+=(iproute2)
    [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
    if [ "${#missing[@]}" = 0 ]; then return; fi
    command -v apt-get >/dev/null || die "missing, and no apt-get to install them: ${missing[*]}"
    echo "installing ${missing[*]}" >&2
    timeout 300 apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
}
