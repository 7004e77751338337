// Package nodes tests nodeskoop on nodes with a real kubelet and real containerds. The
// pods that nodeskoop shows must be the kubelet's, whatever happens to pods, kubelet,
// containerd and nodeskoop itself. `make test-nodes` runs the package.
//
// The kubelet and containerd 2 are built from separate Go modules, in the folders
// kubelet and containerd, so that the project's own module does not require Kubernetes.
// The script binaries builds and downloads them.
package nodes
