//go:build tools

// Package tools names the program that tests/cluster/run builds from agent-sandbox, so that go.mod and go.sum pin it.
package tools

import _ "sigs.k8s.io/agent-sandbox/cmd/agent-sandbox-controller"
