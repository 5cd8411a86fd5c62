// Only files of the module are used, no package: `go mod tidy` would remove it, so it is kept by hand.
module sandgate.dev/tests/cluster/agent-sandbox

go 1.26.0

require sigs.k8s.io/agent-sandbox v0.5.6
