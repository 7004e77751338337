package pod

import (
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func ext(name, text string) map[string]*anypb.Any {
	return map[string]*anypb.Any{name: {TypeUrl: "github.com/containerd/cri/pkg/store/sandbox/Metadata", Value: []byte(text)}}
}

var diffAbout = []cmp.Option{cmp.AllowUnexported(about{}, fileStamp{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}

// withLabels returns a copy of l with further labels, given as key, value, and so on.
func withLabels(l map[string]string, kv ...string) map[string]string {
	out := maps.Clone(l)
	for i := 0; i < len(kv); i += 2 {
		out[kv[i]] = kv[i+1]
	}
	return out
}

func TestAboutContainer(t *testing.T) {
	created := time.Unix(1700000000, 5).UTC()
	captured := strings.TrimSpace(string(readFile(t, "testdata/sandbox-1.6.json")))
	podOf := map[string]string{labelPodName: "front", labelNamespace: "web", labelUID: "a775a553-a88a-4b1f-bafc-563cb49439ca"}
	for _, test := range []struct {
		name string
		in   *containers.Container
		want *about
	}{
		{"a sandbox as containerd 1.6 keeps it",
			&containers.Container{ID: "s", Labels: withLabels(podOf, labelKind, "sandbox", "from-image", "x"), Extensions: ext(extSandbox, captured)},
			&about{kind: sandbox, sandbox: "s", namespace: "web", name: "front", uid: "a775a553-a88a-4b1f-bafc-563cb49439ca", labels: withLabels(podOf, "app", "front"),
				netnsPath: "/var/run/netns/cni-36d60ed7-3a47-cbb6-9e4d-9d2afd23442c",
				addrs:     []netip.Addr{netip.MustParseAddr("10.88.77.2"), netip.MustParseAddr("fd77:88::2")}}},
		{"a hostNetwork sandbox",
			&containers.Container{ID: "s", Labels: withLabels(podOf, labelKind, "sandbox"), Extensions: ext(extSandbox,
				`{"Version":"v1","Metadata":{"NetNSPath":"","IP":"","Config":{"linux":{"security_context":{"namespace_options":{"network":2}}}}}}`)},
			&about{kind: sandbox, sandbox: "s", namespace: "web", name: "front", uid: podOf[labelUID], labels: podOf, hostNetwork: true}},
		{"an image that is labelled as a pod's sandbox",
			&containers.Container{ID: "s", Labels: withLabels(podOf, labelKind, "sandbox")},
			&about{kind: plain, sandbox: "s", namespace: "k8s.io", name: "s", labels: withLabels(podOf, labelKind, "sandbox")}},
		{"an image that is labelled as a pod's container",
			&containers.Container{ID: "c", Labels: withLabels(podOf, labelKind, "container")},
			&about{kind: plain, sandbox: "c", namespace: "k8s.io", name: "c", labels: withLabels(podOf, labelKind, "container")}},
		{"a control group",
			&containers.Container{ID: "web", Spec: &anypb.Any{Value: []byte(`{"linux":{"cgroupsPath":"/k8s.io/web"}}`)}},
			&about{kind: plain, sandbox: "web", namespace: "k8s.io", name: "web", groups: []string{"/k8s.io/web"}}},
		{"a specification of another form",
			&containers.Container{ID: "web", Spec: &anypb.Any{Value: []byte(`{"linux":{"cgroupsPath":["/"]}}`)}},
			&about{kind: plain, sandbox: "web", namespace: "k8s.io", name: "web"}},
		{"fields of other types",
			&containers.Container{ID: "s", Labels: withLabels(podOf, labelKind, "sandbox"), Extensions: ext(extSandbox,
				`{"Version":7,"Metadata":{"NetNSPath":["x"],"IP":5,"AdditionalIPs":["::ffff:1.2.3.4","fe80::1%eth0","bad",""],"Config":{"labels":{"a":1,"b":"c"},"linux":"no"}}}`)},
			&about{kind: sandbox, sandbox: "s", namespace: "web", name: "front", uid: podOf[labelUID], labels: map[string]string{"a": "", "b": "c"},
				addrs: []netip.Addr{netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("fe80::1")}}},
		{"metadata that is null",
			&containers.Container{ID: "s", Labels: withLabels(podOf, labelKind, "sandbox"), Extensions: ext(extSandbox, `{"Metadata":null}`)},
			&about{kind: sandbox, sandbox: "s", namespace: "web", name: "front", uid: podOf[labelUID], labels: podOf}},
		{"metadata that is no JSON",
			&containers.Container{ID: "s", Labels: withLabels(podOf, labelKind, "sandbox"), Extensions: ext(extSandbox, "\x0a\x02hi")},
			&about{kind: sandbox, sandbox: "s", namespace: "web", name: "front", uid: podOf[labelUID], labels: podOf}},
		{"a sandbox named in its metadata only",
			&containers.Container{ID: "s", Labels: map[string]string{labelKind: "sandbox"}, Extensions: ext(extSandbox,
				`{"Metadata":{"Config":{"metadata":{"name":"n","namespace":"ns","uid":"u"}}}}`)},
			&about{kind: sandbox, sandbox: "s", namespace: "ns", name: "n", uid: "u", labels: map[string]string{}}},
		{"a sandbox without any name",
			&containers.Container{ID: strings.Repeat("ab", 32), Labels: map[string]string{labelKind: "sandbox"}, Extensions: ext(extSandbox, "{}")},
			&about{kind: sandbox, sandbox: strings.Repeat("ab", 32), namespace: "k8s.io", name: "abababababab", labels: map[string]string{}}},
		{"a container of a pod",
			&containers.Container{ID: "c", Labels: withLabels(podOf, labelKind, "container"), Extensions: ext(extContainer, `{"Version":"v1","Metadata":{"ID":"c","SandboxID":"s"}}`)},
			&about{kind: member, sandbox: "s", namespace: "web", name: "front", uid: podOf[labelUID]}},
		{"a container of a pod, as containerd 2 keeps it",
			&containers.Container{ID: "c", Labels: withLabels(podOf, labelKind, "container"), Sandbox: "s2"},
			&about{kind: member, sandbox: "s2", namespace: "web", name: "front", uid: podOf[labelUID]}},
		{"a container of a sandbox that is not told",
			&containers.Container{ID: "c", Labels: withLabels(podOf, labelKind, "container"), Extensions: ext(extContainer, "{}")},
			&about{kind: member, sandbox: podOf[labelUID], namespace: "web", name: "front", uid: podOf[labelUID]}},
		{"a container of no pod that is told",
			&containers.Container{ID: "c", Labels: map[string]string{labelKind: "container"}},
			&about{kind: plain, sandbox: "c", namespace: "k8s.io", name: "c", labels: map[string]string{labelKind: "container"}}},
		{"a plain container",
			&containers.Container{ID: "web"},
			&about{kind: plain, sandbox: "web", namespace: "k8s.io", name: "web"}},
		{"nerdctl's",
			&containers.Container{ID: strings.Repeat("0", 64), Labels: map[string]string{labelNerdctl: "db"}},
			&about{kind: plain, sandbox: strings.Repeat("0", 64), namespace: "k8s.io", name: "db", labels: map[string]string{labelNerdctl: "db"}}},
		{"nothing", nil, &about{kind: plain, namespace: "k8s.io"}},
	} {
		if test.in != nil {
			test.in.CreatedAt, test.in.UpdatedAt = timestamppb.New(created), timestamppb.New(created)
			test.want.created, test.want.updated = created, created
		} else {
			test.want.created, test.want.updated = time.Unix(0, 0).UTC(), time.Unix(0, 0).UTC()
		}
		if diff := cmp.Diff(test.want, aboutContainer("k8s.io", test.in), diffAbout...); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestAboutSandbox(t *testing.T) {
	if a := aboutSandbox(nil); a != nil {
		t.Errorf("nothing: %+v", a)
	}
	if a := aboutSandbox(&types.Sandbox{SandboxID: "x", Labels: map[string]string{"name": "x"}}); a != nil {
		t.Errorf("without a pod's name: %+v", a)
	}
	a := aboutSandbox(&types.Sandbox{SandboxID: "s", Extensions: ext(extStored, string(readFile(t, "testdata/sandbox-1.6.json")))})
	if a == nil || a.kind != sandbox || a.sandbox != "s" || a.name != "front" || a.namespace != "web" || len(a.addrs) != 2 {
		t.Errorf("%+v", a)
	}
}

func TestParseNamespaces(t *testing.T) {
	for in, want := range map[string][]string{
		"": nil, "*": nil, " , ": nil, "a,*": nil,
		"k8s.io": {"k8s.io"}, " a , b,a": {"a", "b"},
	} {
		if diff := cmp.Diff(want, parseNamespaces(in)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", in, diff)
		}
	}
}

func FuzzSandbox(f *testing.F) {
	f.Add(readFile(f, "testdata/sandbox-1.6.json"), "sandbox")
	f.Add([]byte(`{"Metadata":{"Config":{"labels":null,"linux":{"security_context":{"namespace_options":{"network":"NODE"}}}}}}`), "sandbox")
	f.Add([]byte(`{"Metadata":{"SandboxID":["x"]}}`), "container")
	f.Fuzz(func(t *testing.T, data []byte, kind string) {
		c := &containers.Container{ID: "x", Labels: map[string]string{labelKind: kind}, Extensions: ext(extSandbox, string(data))}
		c.Extensions[extContainer] = c.Extensions[extSandbox]
		if a := aboutContainer("ns", c); a.sandbox == "" || a.name == "" || len(a.addrs) > maxAddrs {
			t.Errorf("%+v", a)
		}
		aboutSandbox(&types.Sandbox{SandboxID: "x", Extensions: ext(extStored, string(data))})
	})
}

// BenchmarkAboutContainer reads a sandbox's record.
func BenchmarkAboutContainer(b *testing.B) {
	c := &containers.Container{ID: "s", Labels: map[string]string{labelKind: "sandbox"}, Extensions: ext(extSandbox, string(readFile(b, "testdata/sandbox-1.6.json")))}
	b.ReportAllocs()
	for b.Loop() {
		aboutContainer("k8s.io", c)
	}
}
