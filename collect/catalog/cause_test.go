package catalog

import (
	"regexp"
	"strings"
	"testing"
)

// TestCausesAreWhole: everything that a cause refers to exists, and no text is
// missing.
func TestCausesAreWhole(t *testing.T) {
	ids, used := map[string]bool{}, map[string]bool{}
	id := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	places := regexp.MustCompile(`\{[a-z]*\}`)
	for _, c := range Causes() {
		if !id.MatchString(c.ID) || ids[c.ID] {
			t.Errorf("%q is no ID, or there twice", c.ID)
		}
		ids[c.ID] = true
		if c.Title == "" || c.Means == "" || c.Healthy == "" || len(c.Next) == 0 || c.Blame == 0 || c.Blame.String() == "" || c.Weight <= 0 || c.Weight > 1 {
			t.Errorf("%s lacks something: %+v", c.ID, c)
		}
		if len(c.All)+len(c.One) == 0 {
			t.Errorf("%s rests on nothing", c.ID)
		}
		for _, p := range places.FindAllString(c.Title, -1) {
			if !strings.Contains("{blame} {owner} {peer} {what}", p) {
				t.Errorf("%s: the title has %s", c.ID, p)
			}
		}
		for _, s := range c.Signs() {
			used[s.Signal], used[s.Of] = true, true
			if SignalByName(s.Signal) == nil || s.Of != "" && SignalByName(s.Of) == nil {
				t.Errorf("%s: there is no signal %s or %s", c.ID, s.Signal, s.Of)
			}
			if s.AtLeast <= 0 || (s.Of == "") != (s.Share == 0) {
				t.Errorf("%s: %+v has no threshold", c.ID, s)
			}
		}
		for _, s := range append(append([]Sign{}, c.All...), c.One...) {
			if s.Why == "" {
				t.Errorf("%s: nothing argues for the threshold of %s", c.ID, s.Signal)
			}
		}
		for _, s := range c.Next {
			if s.Command == "" || s.Shows == "" {
				t.Errorf("%s: step %+v", c.ID, s)
			}
		}
	}
	for _, c := range Causes() {
		for _, e := range c.Explains {
			if !ids[e] || e == c.ID {
				t.Errorf("%s explains %s", c.ID, e)
			}
		}
	}
	for _, s := range Signals() {
		if s.Text == "" || s.Source == "" {
			t.Errorf("%+v", s)
		}
		for _, p := range places.FindAllString(s.Text, -1) {
			if !strings.Contains("{n} {peer} {what} {from} {time}", p) {
				t.Errorf("%s: the text has %s", s.Name, p)
			}
		}
		if !used[s.Name] {
			t.Errorf("no cause uses the signal %s", s.Name)
		}
	}
}

func TestSignalByName(t *testing.T) {
	for name, want := range map[string]bool{"TcpExtListenOverflows": true, "Ip6OutNoRoutes": true, "IpOutNoRoutes": true, "Icmp6InErrors": true,
		"kubeskoop_softnet_dropped": true, "drop.rule": true, "drop.everything": false, "kubeskoop_no_such": false, "Tcp": false, "Iptables": false} {
		if got := SignalByName(name) != nil; got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
