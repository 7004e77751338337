package nodes

import (
	"fmt"
	"strings"

	"nodeskoop/internal/testkit/pods"
)

// object is a part of a manifest.
type object map[string]any

// manifest is a static pod.
type manifest struct {
	namespace, name string
	spec            object
	ended           float64 // known number of writes of containers that end
}

// podName returns the kubelet's name of a static pod, which ends in the node's name.
func (m manifest) podName() podName { return podName{m.namespace, m.name + "-node1"} }

func (m manifest) object() object {
	spec := object{"terminationGracePeriodSeconds": 1}
	for k, v := range m.spec {
		spec[k] = v
	}
	return object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"name": m.name, "namespace": m.namespace, "labels": object{"app": m.name[:min(len(m.name), 60)]}},
		"spec":     spec,
	}
}

// idle is a shell command that never ends and does nothing.
const idle = "exec sleep 1000000"

// writes returns shell commands that make n calls of write(2): one per line of output,
// all in the shell itself.
func writes(n int) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo x; done > /tmp/w; ", n)
}

// container is a container that runs a line of shell.
func container(name, line string, more ...object) object {
	c := object{"name": name, "image": pods.Image, "imagePullPolicy": "Never", "command": []string{"sh", "-c", line}}
	for _, m := range more {
		for k, v := range m {
			c[k] = v
		}
	}
	return c
}

// pod is a pod with a container that idles, unless the spec has others.
func pod(namespace, name string, spec object) manifest {
	if spec == nil {
		spec = object{}
	}
	if spec["containers"] == nil {
		spec["containers"] = []object{container("main", idle)}
	}
	return manifest{namespace: namespace, name: name, spec: spec}
}

// withEnded sets the known number of writes of containers that end.
func (m manifest) withEnded(writes float64) manifest {
	m.ended = writes
	return m
}

func resources(kind, cpu, memory string) object {
	return object{"resources": object{kind: object{"cpu": cpu, "memory": memory}}}
}

// Each container that writes makes this number of write calls.
const known = 300

// shapes are kinds of pods, keyed by what is special about them.
var shapes = map[string]manifest{
	"plain": pod("default", "plain", nil),
	"two containers": pod("shop", "two", object{"containers": []object{
		container("one", writes(known)+idle), container("other", writes(known)+idle),
	}}),
	"init containers": pod("default", "init", object{"initContainers": []object{
		container("first", "sleep 1"), container("second", writes(known)+"sleep 2"),
	}}).withEnded(known),
	"native sidecar": pod("default", "sidecar", object{"initContainers": []object{
		container("native", idle, object{"restartPolicy": "Always"}),
	}}),
	"crash loop": pod("default", "crash", object{"containers": []object{
		container("good", idle), container("bad", writes(known)+"sleep 2; exit 1"),
	}}),
	"hostNetwork": pod("kube-system", "hostnet", object{"hostNetwork": true}),
	"hostPID":     pod("kube-system", "hostpid", object{"hostPID": true}),
	"shareProcessNamespace": pod("default", "sharepid", object{"shareProcessNamespace": true, "containers": []object{
		container("one", idle), container("other", "setsid sleep 1000000 & "+idle),
	}}),
	"guaranteed": pod("default", "guaranteed", object{"containers": []object{container("main", idle, resources("limits", "50m", "32Mi"))}}),
	"burstable":  pod("default", "burstable", object{"containers": []object{container("main", idle, resources("requests", "10m", "8Mi"))}}),
	"best effort": pod("default", "besteffort", object{"containers": []object{
		container("main", writes(known)+idle),
	}}),
	"privileged": pod("default", "privileged", object{"containers": []object{
		container("main", idle, object{"securityContext": object{"privileged": true}}),
	}}),
	"not root": pod("default", "user", object{"containers": []object{
		container("main", idle, object{"securityContext": object{
			"runAsUser": 1000, "runAsNonRoot": true, "allowPrivilegeEscalation": false, "capabilities": object{"drop": []string{"ALL"}},
		}}),
	}}),
	"long dotted name": pod("a-namespace-of-some-length",
		"a.dotted."+strings.Repeat("x", 60)+"."+strings.Repeat("y", 60)+"."+strings.Repeat("z", 50)+".end", nil),
	"hostPort": pod("default", "hostport", object{"containers": []object{
		container("main", "exec httpd -f -p 80", object{"ports": []object{{"containerPort": 80, "hostPort": 18080}}}),
	}}),
	"exec probes": pod("default", "probed", object{"containers": []object{
		container("main", idle, object{"livenessProbe": object{
			"exec": object{"command": []string{"sh", "-c", writes(100)}}, "periodSeconds": 1, "timeoutSeconds": 20, "failureThreshold": 100,
		}}),
	}}),
	"completed":            pod("default", "done", object{"restartPolicy": "Never", "containers": []object{container("main", "sleep 1")}}),
	"deleted and remade":   pod("default", "again", nil),
	"pause process killed": pod("default", "pauseless", nil),
}

// Two pods that exchange requests.
var (
	server = pod("shop", "server", object{"containers": []object{container("main", "exec httpd -f -p 80")}})
	client = pod("shop", "client", nil)
)
