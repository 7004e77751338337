package session

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestJudgeHost(t *testing.T) {
	node := facts{hostPIDs: true, ownNetns: true, initNetns: true, cgroups: true, unified: true}
	denied := errors.New("denied")
	with := func(change func(*facts)) facts { f := node; change(&f); return f }
	for name, c := range map[string]struct {
		f       facts
		named   string
		devices bool
		err     string // error of ViewHost
		refused []string
		netns   string
		foreign bool
		machine bool
	}{
		"a node":                          {f: node},
		"a node, process 1 hidden":        {f: with(func(f *facts) { f.init = denied }), netns: "/proc/self/ns/net"},
		"its own network, process 1 seen": {f: with(func(f *facts) { f.ownNetns = false })},
		"its own network, 1 hidden":       {f: with(func(f *facts) { f.init, f.ownNetns = denied, false }), err: "--network=host"},
		"the same, named":                 {f: with(func(f *facts) { f.init, f.ownNetns = denied, false }), named: "/run/netns/x", netns: "/run/netns/x"},
		"its own PIDs":                    {f: with(func(f *facts) { f.hostPIDs = false }), err: "--pid=host"},
		"its own PIDs, named":             {f: with(func(f *facts) { f.hostPIDs = false }), named: "/run/netns/x", refused: []string{"fd", "io"}, netns: "/run/netns/x", foreign: true},
		"its own cgroups":                 {f: with(func(f *facts) { f.cgroups, f.unified = false, false }), refused: []string{"fd", "flow", "io"}},
		"the same, flow by devices":       {f: with(func(f *facts) { f.cgroups, f.unified = false, false }), devices: true, refused: []string{"fd", "io"}},
		"a machine of its own":            {f: facts{booted: true, cgroups: true}, foreign: true, machine: true},
		"one on the host's network":       {f: facts{booted: true, cgroups: true, initNetns: true}, refused: []string{"flow"}, foreign: true, machine: true},
		"one whose cgroups are hidden":    {f: facts{booted: true}, refused: []string{"fd", "flow", "io"}, foreign: true, machine: true},
	} {
		v, err := judgeHost(c.f, c.named, c.devices)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
		if err != nil {
			continue
		}
		if got := slices.Sorted(maps.Keys(v.Refused)); !slices.Equal(got, c.refused) {
			t.Errorf("%s: refused %v, want %v", name, got, c.refused)
		}
		if v.Netns != c.netns || v.ForeignPIDs != c.foreign || v.Machine != c.machine {
			t.Errorf("%s: %+v", name, v)
		}
		for p, err := range v.Refused {
			if s := err.Error(); !strings.Contains(s, "--pid=host") && !strings.Contains(s, "--cgroupns=host") {
				t.Errorf("%s: %s: no flag helps: %v", name, p, err)
			}
		}
	}
}
