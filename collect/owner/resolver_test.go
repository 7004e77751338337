package owner

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// table is a Pods with fixed answers.
type table struct {
	NoPods
	netns map[uint64]*Pod
	addrs map[netip.Addr]*Pod
	pids  map[int]*Pod
}

func (t *table) ByNetns(inode uint64, _ time.Time) *Pod { return t.netns[inode] }
func (t *table) ByAddr(a netip.Addr) *Pod               { return t.addrs[a] }
func (t *table) ByPID(pid int) *Pod                     { return t.pids[pid] }
func (t *table) Running() (list []*Pod)                 { return append(list, t.netns[77]) }
func (t *table) ByCgroup(id uint64) *Pod                { return t.netns[id] }

var (
	addr  = netip.MustParseAddr
	web   = &Pod{ID: "web", Name: "web", Netns: 77, Addrs: []netip.Addr{addr("10.0.0.5"), addr("10.0.0.66")}}
	db    = &Pod{ID: "db", Name: "db", Netns: 78, Addrs: []netip.Addr{addr("10.0.0.9"), addr("10.0.0.66")}}
	proxy = &Pod{ID: "proxy", Name: "proxy", HostNetwork: true, Addrs: []netip.Addr{addr("192.0.2.2")}}
	known = &table{
		netns: map[uint64]*Pod{77: web, 78: db},
		addrs: map[netip.Addr]*Pod{addr("10.0.0.5"): web, addr("10.0.0.9"): db, addr("10.0.0.66"): db, addr("192.0.2.2"): proxy},
		pids:  map[int]*Pod{812: web, 900: proxy},
	}
)

const host = 1

func TestOwner(t *testing.T) {
	for name, c := range map[string]struct {
		netns   uint64
		pid     int
		foreign bool // ForeignPIDs
		host    uint64
		pod     *Pod
		sure    bool
		unowned bool // whether the namespace is unowned, if it is not a pod's
	}{
		"a pod's namespace":               {netns: 77, host: host, pod: web, sure: true, unowned: true},
		"it comes before the process":     {netns: 78, pid: 812, host: host, pod: db, sure: true, unowned: true},
		"a namespace that may become one": {netns: 99, host: host, unowned: true},
		"with a process of nobody's":      {netns: 99, pid: 5, host: host, unowned: true},
		"with a pod's process":            {netns: 99, pid: 812, host: host, pod: web, sure: true, unowned: true},
		"the host's":                      {netns: host, host: host, sure: true},
		"the host's, of a pod's process":  {netns: host, pid: 900, host: host, pod: proxy, sure: true},
		"the host's, of another process":  {netns: host, pid: 5, host: host, sure: true},
		"a process alone":                 {pid: 812, host: host, pod: web, sure: true},
		"a process that may become one":   {pid: 5, host: host},
		"foreign numbers":                 {pid: 812, foreign: true, host: host, sure: true},
		"nothing":                         {host: host, sure: true},
		"no host is known":                {netns: 99},
	} {
		r := NewResolver(Sources{Pods: known, HostNetns: c.host, ForeignPIDs: c.foreign})
		if pod, sure := r.Owner(c.netns, c.pid, time.Time{}); pod != c.pod || sure != c.sure {
			t.Errorf("%s: %v, %v", name, pod, sure)
		}
		if r.Unowned(c.netns) != c.unowned {
			t.Errorf("%s: unowned is %v", name, !c.unowned)
		}
	}
}

func TestEnd(t *testing.T) {
	r := NewResolver(Sources{Pods: known, HostNetns: host, NodeAddrs: func() ([]netip.Addr, error) {
		return []netip.Addr{addr("192.0.2.1"), addr("::ffff:192.0.2.3"), addr("fe80::1%eth0")}, nil
	}})
	if err := r.ReadAddrs(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		addr    string
		where   *Pod
		unowned bool
		kind    string
		pod     *Pod
	}{
		"a pod's":                     {addr: "10.0.0.9", kind: EndPod, pod: db},
		"mapped":                      {addr: "::ffff:10.0.0.9", where: web, kind: EndPod, pod: db},
		"its own, and another's":      {addr: "10.0.0.66", where: web, kind: EndPod, pod: web},
		"seen from elsewhere":         {addr: "10.0.0.66", kind: EndPod, pod: db},
		"the node's":                  {addr: "192.0.2.1", where: web, kind: EndNode},
		"the node's, told as mapped":  {addr: "192.0.2.3", kind: EndNode},
		"link-local":                  {addr: "fe80::1", kind: EndNode},
		"of a pod in the host's":      {addr: "192.0.2.2", kind: EndNode},
		"loopback in a pod":           {addr: "127.0.0.1", where: web, kind: EndPod, pod: web},
		"loopback on the host":        {addr: "::1", kind: EndNode},
		"loopback somewhere":          {addr: "127.0.0.1", unowned: true, kind: EndUnknown},
		"loopback of a pod on a host": {addr: "127.0.0.1", where: proxy, kind: EndNode},
		"far away":                    {addr: "203.0.113.1", where: web, kind: EndUnknown},
	} {
		if kind, pod := r.End(addr(c.addr), c.where, c.unowned); kind != c.kind || pod != c.pod {
			t.Errorf("%s: %q, %v", name, kind, pod)
		}
		if nobodys := r.Nobodys(addr(c.addr), c.where); nobodys != (name == "far away") {
			t.Errorf("%s: nobody's is %v", name, nobodys)
		}
	}
	if kind, pod := r.End(netip.Addr{}, nil, false); kind != EndUnknown || pod != nil || r.Nobodys(netip.Addr{}, nil) {
		t.Errorf("no address: %q, %v", kind, pod)
	}
	if r.Nobodys(addr("224.0.0.1"), nil) {
		t.Error("a group's address may become the node's")
	}
}

// Apply changes the answers for callers that keep the Resolver.
func TestApply(t *testing.T) {
	r := NewResolver(Sources{})
	var pods Pods = r
	if pods.ByNetns(77, time.Time{}) != nil || pods.Connected() {
		t.Error("somebody answers")
	}
	r.Apply(Sources{Pods: known})
	if pods.ByNetns(77, time.Time{}) != web || pods.ByAddr(addr("10.0.0.9")) != db || pods.ByPID(900) != proxy || pods.ByCgroup(78) != db || pods.Running()[0] != web {
		t.Error("the new pods do not answer")
	}
	if list, err := pods.Processes(web, []int{1}); len(list) != 1 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
}

// TestNodeAddrs: readings do not overlap and are not frequent. One that hangs or fails
// leaves the previous addresses, and delays nobody beyond the limit.
func TestNodeAddrs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var readings int
		var fail error
		var wait time.Duration
		list := func(a string) func() ([]netip.Addr, error) {
			return func() ([]netip.Addr, error) {
				readings++
				err := fail
				time.Sleep(wait)
				return []netip.Addr{addr(a)}, err
			}
		}
		const first, second = "192.0.2.1", "192.0.2.2"
		r := NewResolver(Sources{HostNetns: host, NodeAddrs: list(first)})
		is := func(a string) bool { kind, _ := r.End(addr(a), nil, false); return kind == EndNode }
		fail = errors.New("no luck")
		if err := r.ReadAddrs(); err != fail {
			t.Errorf("a reading that fails: %v", err)
		}
		fail, wait = nil, time.Hour
		if err := r.ReadAddrs(); err == nil || !strings.Contains(err.Error(), "listing the node's addresses") {
			t.Errorf("a reading that hangs: %v", err)
		}
		start := time.Now()
		if err := r.ReadAddrs(); err == nil || time.Since(start) > 0 {
			t.Errorf("it is waited for again: %v after %v", err, time.Since(start))
		}
		wait = 0
		time.Sleep(2 * time.Hour)
		asked := time.Now()
		if !is(first) || r.AddrsReadSince(asked) {
			t.Error("what the reading that hung found is not known, or passes for new")
		}
		readings = 0
		for range 100 {
			r.RefreshAddrs()
			synctest.Wait()
			time.Sleep(10 * time.Millisecond)
		}
		if readings < 4 || readings > 6 || !r.AddrsReadSince(asked) {
			t.Errorf("%d readings in a second", readings)
		}
		readings = 0
		for range 60 {
			is("203.0.113.1")
			synctest.Wait()
			time.Sleep(time.Second)
		}
		if readings < 1 || readings > 2 {
			t.Errorf("%d readings in a minute", readings)
		}
		fail = errors.New("no luck")
		if err := r.ReadAddrs(); err != nil || !is(first) {
			t.Errorf("those of before are not there: %v", err)
		}
		fail = nil
		// Addresses of the previous host namespace are not used for the new one.
		wait = time.Second
		r.RefreshAddrs()
		time.Sleep(200 * time.Millisecond)
		r.RefreshAddrs()
		synctest.Wait()
		r.Apply(Sources{HostNetns: host + 1, NodeAddrs: list(second)})
		if is(first) || is(second) {
			t.Error("addresses of another namespace are the node's")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := r.ReadAddrs(); err != nil && !is(second) {
			t.Errorf("the new ones are not known: %v", err)
		}
		time.Sleep(time.Minute)
		if is(first) || !is(second) {
			t.Error("a late reading of another namespace is taken")
		}
		// A panic is an error.
		r.Apply(Sources{HostNetns: host + 2, NodeAddrs: func() ([]netip.Addr, error) { panic("boom") }})
		if err := r.ReadAddrs(); err == nil || !strings.Contains(err.Error(), "boom") {
			t.Errorf("a panic: %v", err)
		}
		time.Sleep(time.Minute) // the last reading ends
	})
}
