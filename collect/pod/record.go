package pod

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/anypb"
)

// kind is a container's role.
type kind uint8

const (
	plain   kind = iota // outside pods
	sandbox             // holds the pod's namespaces
	member              // any other container of a pod
)

// The labels and extensions with which containerd's CRI plugin marks a pod's containers.
const (
	labelKind      = "io.cri-containerd.kind"
	labelPodName   = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelUID       = "io.kubernetes.pod.uid"
	labelNerdctl   = "nerdctl/name"

	extSandbox   = "io.cri-containerd.sandbox.metadata"
	extContainer = "io.cri-containerd.container.metadata"
	extStored    = "metadata" // in the sandbox store
)

// about is the content of containerd's record of a container or sandbox.
type about struct {
	kind kind
	// sandbox is the sandbox's ID; outside pods, the container's own.
	sandbox              string
	namespace, name, uid string
	labels               map[string]string
	labelsLeftOut        int // number of labels beyond the limits
	created, updated     time.Time

	hostNetwork bool
	netnsPath   string
	addrs       []netip.Addr
	groups      []string // see specGroups

	// record is the path of Docker's file about the container, "" if the container is
	// not Docker's. stamp identifies the version that was read.
	record string
	stamp  fileStamp
}

// aboutContainer reads a record of the containers service. Labels may come from an image,
// so only the CRI plugin's own extension proves that a container belongs to a pod.
func aboutContainer(namespace string, c *containers.Container) *about {
	a := &about{
		sandbox: c.GetID(),
		created: c.GetCreatedAt().AsTime(),
		updated: c.GetUpdatedAt().AsTime(),
	}
	l := c.GetLabels()
	a.namespace, a.name, a.uid = l[labelNamespace], l[labelPodName], l[labelUID]
	ext := c.GetExtensions()
	switch {
	case l[labelKind] == "sandbox" && ext[extSandbox] != nil:
		a.kind = sandbox
		a.labels = podLabels(l)
		a.readSandbox(ext[extSandbox])
	case l[labelKind] == "container" && (ext[extContainer] != nil || c.GetSandbox() != ""):
		a.kind = member
		a.sandbox = c.GetSandbox()
		if a.sandbox == "" {
			a.sandbox = sandboxOf(c.GetExtensions()[extContainer])
		}
		if a.sandbox == "" {
			a.sandbox = a.uid // without a sandbox ID, at least the pod's containers stay together
		}
	}
	if a.kind == plain || a.sandbox == "" {
		// Outside pods, or the pod cannot be identified.
		a.kind, a.sandbox, a.labels, a.uid = plain, c.GetID(), l, ""
		a.name = ""
	}
	if a.name == "" {
		a.namespace, a.name = namespace, plainName(a.sandbox, l)
	}
	var spec struct {
		Mounts []mount `json:"mounts"`
		Linux  struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if readJSON(c.GetSpec(), &spec) {
		a.groups = specGroups(spec.Linux.CgroupsPath)
	}
	// Docker's plugins have this label as well, but no file.
	if a.kind == plain && l[labelDocker] != "" && isLongID(c.GetID()) && !strings.HasPrefix(namespace, "plugins.") {
		a.record = dockerFile(c.GetID(), spec.Mounts)
	}
	return a
}

// aboutSandbox reads a record of the sandbox store, which containerd has since 2.0. It
// returns nil if the record does not name a pod.
func aboutSandbox(s *types.Sandbox) *about {
	a := &about{
		kind:    sandbox,
		sandbox: s.GetSandboxID(),
		created: s.GetCreatedAt().AsTime(),
		updated: s.GetUpdatedAt().AsTime(),
	}
	l := s.GetLabels()
	a.namespace, a.name, a.uid = l[labelNamespace], l[labelPodName], l[labelUID]
	a.labels = podLabels(l)
	ext := s.GetExtensions()[extStored]
	if ext == nil {
		ext = s.GetExtensions()[extSandbox]
	}
	a.readSandbox(ext)
	if a.name == "" || a.sandbox == "" {
		return nil
	}
	return a
}

// podLabels returns the labels without the CRI plugin's mark.
func podLabels(l map[string]string) map[string]string {
	out := make(map[string]string, len(l))
	for k, v := range l {
		if k != labelKind {
			out[k] = v
		}
	}
	return out
}

// plainName names a container outside pods: nerdctl's name, else the usual first twelve
// digits of its ID. Docker's names are not in the record; see dockerFiles.
func plainName(id string, labels map[string]string) string {
	if n := labels[labelNerdctl]; n != "" {
		return n
	}
	if isLongID(id) {
		return id[:12]
	}
	return id
}

// sandboxMetadata holds the fields used of the CRI plugin's sandbox extension: Metadata of
// containerd's sandbox store as JSON, with the kubelet's PodSandboxConfig in it.
type sandboxMetadata struct {
	Metadata struct {
		NetNSPath     string
		IP            string
		AdditionalIPs []string
		Config        struct {
			Metadata struct {
				Name      string `json:"name"`
				UID       string `json:"uid"`
				Namespace string `json:"namespace"`
			} `json:"metadata"`
			Labels map[string]string `json:"labels"`
			Linux  struct {
				SecurityContext struct {
					NamespaceOptions struct {
						Network int `json:"network"`
					} `json:"namespace_options"`
				} `json:"security_context"`
			} `json:"linux"`
		}
	}
}

// namespaceNode is NODE of the CRI's NamespaceMode.
const namespaceNode = 2

// readSandbox takes over the fields that it finds. Missing fields, and fields of another
// type, leave the record unchanged.
func (a *about) readSandbox(ext *anypb.Any) {
	var s sandboxMetadata
	if !readJSON(ext, &s) {
		return
	}
	m := &s.Metadata
	if c := &m.Config.Metadata; c.Name != "" {
		a.namespace, a.name, a.uid = c.Namespace, c.Name, c.UID
	}
	if len(m.Config.Labels) > 0 {
		a.labels = m.Config.Labels // the record's labels include the image's
	}
	a.hostNetwork = m.Config.Linux.SecurityContext.NamespaceOptions.Network == namespaceNode
	if a.hostNetwork {
		return
	}
	a.netnsPath = m.NetNSPath
	for _, ip := range append([]string{m.IP}, m.AdditionalIPs...) {
		if addr, err := netip.ParseAddr(strings.TrimSpace(ip)); err == nil && len(a.addrs) < maxAddrs {
			a.addrs = append(a.addrs, addr.WithZone("").Unmap())
		}
	}
}

// sandboxOf finds the sandbox's ID in the CRI plugin's container extension.
func sandboxOf(ext *anypb.Any) string {
	var c struct{ Metadata struct{ SandboxID string } }
	readJSON(ext, &c)
	return c.Metadata.SandboxID
}

// readJSON reports whether ext is JSON. It skips fields of other types.
func readJSON(ext *anypb.Any, to any) bool {
	if len(ext.GetValue()) == 0 {
		return false
	}
	err := json.Unmarshal(ext.GetValue(), to)
	var other *json.UnmarshalTypeError
	return err == nil || errors.As(err, &other)
}
