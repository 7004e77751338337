// Package nodes tests nodeskoop on nodes with a real kubelet and real containerds: the pods
// that it shows are the kubelet's, whatever becomes of the pods, of the kubelet, of
// containerd and of nodeskoop itself. `make test-nodes` runs it.
//
// The kubelet and containerd 2 are built from Go modules of their own, in the folders
// kubelet and containerd, so that the project's module requires nothing of Kubernetes. The
// script binaries builds and downloads what is missing.
package nodes
