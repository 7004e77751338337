package session

import (
	"errors"
	"strings"
	"testing"

	"nodeskoop/collect/owner"
)

// A pod that does not run here is an error that lists pods with similar names.
func TestFilterCheck(t *testing.T) {
	running := []*owner.Pod{
		{Namespace: "kube-system", Name: "coredns-7d764666f9-x2b7k"},
		{Namespace: "shop", Name: "client-0"},
		{Namespace: "shop", Name: "client-1"},
		{Namespace: "shop", Name: "db-0"},
	}
	away := errors.New("containerd is away")
	for _, c := range []struct {
		pod   string
		named error
		want  string // substring of the error; "" means no error
		no    string // substring that must not be in it
	}{
		{pod: "shop/client-0"},
		{pod: "client-0"},
		{pod: "host"},
		{pod: "host", named: away},
		{pod: "hostNetwork/hostNetwork"},
		{pod: "unknown"},
		{pod: "unknown", named: away},
		{"shop/clinet-0", nil, `no pod "shop/clinet-0" runs here; perhaps shop/client-0, shop/client-1?`, "db-0"},
		{"clent-1", nil, "perhaps shop/client-1, shop/client-0?", "db-0"},
		{"default/client-0", nil, "perhaps shop/client-0?", "db-0"},
		{"coredns", nil, "perhaps kube-system/coredns-7d764666f9-x2b7k?", "shop"},
		{"shop/client", nil, "perhaps shop/client-0, shop/client-1?", "db-0"},
		{"payments/api-0", nil, `no pod "payments/api-0" runs here; nodeskoop pods lists those that do`, "perhaps"},
		{"shop/x\x1b", nil, `"shop/x\x1b"`, "\x1b"},
		{"shop/client-9", away, `"shop/client-9" cannot be found: containerd is away`, "perhaps"},
	} {
		f, err := NewFilter([]string{"host", c.pod}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := f.NamesPods(), !strings.Contains("host hostNetwork/hostNetwork unknown", c.pod); got != want {
			t.Errorf("%s names pods: %v", c.pod, got)
		}
		pods := running
		if c.named != nil {
			pods = nil
		}
		err = f.Check(pods, c.named)
		switch {
		case c.want == "":
			if err != nil {
				t.Errorf("%s: %v", c.pod, err)
			}
		case err == nil || !strings.Contains(err.Error(), c.want) || c.no != "" && strings.Contains(err.Error(), c.no):
			t.Errorf("%s: %v, want %s", c.pod, err, c.want)
		case errors.Is(err, ErrNoSuchPod) != (c.named == nil):
			t.Errorf("%s: %v is ErrNoSuchPod: %v", c.pod, err, errors.Is(err, ErrNoSuchPod))
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"kitten", "sitting", 3}, {"client", "clinet", 2}, {"a", "a", 0}} {
		if got, back := distance(c.a, c.b), distance(c.b, c.a); got != c.want || back != c.want {
			t.Errorf("%q and %q: %d and %d, want %d", c.a, c.b, got, back, c.want)
		}
	}
}
