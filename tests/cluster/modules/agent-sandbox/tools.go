//go:build tools

// Package tools names the programs that are built from agent-sandbox, so that go.mod and go.sum pin them: the controller by
// tests/cluster/run, the router by tests/conformance/go-router.
package tools

import (
	_ "sigs.k8s.io/agent-sandbox/cmd/agent-sandbox-controller"
	_ "sigs.k8s.io/agent-sandbox/sandbox-router/cmd"
)
