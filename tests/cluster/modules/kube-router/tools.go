//go:build tools

// Package tools names the program that tests/cluster/run builds from kube-router, so that go.mod and go.sum pin it.
package tools

import _ "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"
