package proc

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit/nsnet"
)

// Tests of an interface's identity. Each step changes something and sends packets.
// txpackets must grow by the packets sent in the namespace, without what an interface
// counted elsewhere. Each step is tested for the host, where the kernel reports new
// interfaces, for a pod, and for both with a restart of the program between step and
// sample.

// street is a sampled namespace, and one beside it that is not sampled.
type street struct {
	t       *testing.T
	here    *nsnet.Space
	away    *nsnet.Space
	far     *nsnet.Space // holds the peers of the interfaces
	sampler *nsnet.Sampler
	name    string
	again   bool
	last    map[string]float64
	n       int
}

// newStreet samples a host's namespace or a pod's. With beside, the peers of the pod's
// interfaces are in the host's namespace, in which the kernel then reports changes.
func newStreet(t *testing.T, host, beside, again bool) *street {
	s := &street{t: t, here: nsnet.New(t), away: nsnet.New(t), far: nsnet.New(t), name: nsnet.Host, again: again}
	opt := collect.Options{Enabled: []string{"netdev"}}
	if host {
		opt.HostNetns = s.here.Path
	} else {
		s.name, opt.Pods = "a", &nsnet.Pods{List: []*owner.Pod{s.here.Pod("a")}}
	}
	if beside {
		opt.HostNetns = s.far.Path
	}
	for _, x := range []*nsnet.Space{s.here, s.away, s.far} {
		x.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
		x.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	}
	s.sampler = nsnet.NewSampler(t, opt, Probes()...)
	return s
}

// add makes an interface whose peer discards what it receives.
func (s *street) add(in *nsnet.Space, name string, more ...string) {
	s.t.Helper()
	s.n++
	peer := fmt.Sprintf("p%d", s.n)
	in.Run("ip", append([]string{"link", "add", name}, append(more, "type", "veth", "peer", "name", peer, "netns", fmt.Sprint(s.far.PID))...)...)
	s.far.Run("ip", "link", "set", peer, "up")
	s.up(in, name)
}

func (s *street) up(in *nsnet.Space, name string) {
	s.t.Helper()
	s.n++
	in.Run("ip", "addr", "replace", fmt.Sprintf("10.1.%d.1/24", s.n), "dev", name)
	in.Run("ip", "link", "set", name, "up")
	in.AwaitUp(name)
	in.Run("ip", "neigh", "replace", fmt.Sprintf("10.1.%d.2", s.n), "lladdr", "02:00:00:00:00:02", "dev", name)
}

// send sends packets over the interface that came up last.
func (s *street) send(from *nsnet.Space, packets int) {
	s.t.Helper()
	c := from.Dial("udp", fmt.Sprintf("10.1.%d.2:9", s.n))
	for range packets {
		if _, err := c.Write(make([]byte, 972)); err != nil {
			s.t.Fatal(err)
		}
	}
	_ = c.Close()
}

func (s *street) want(what string, packets float64) {
	s.t.Helper()
	if s.again && s.last != nil {
		s.sampler = s.sampler.Again()
	}
	now := s.sampler.Sample()[s.name]
	got := now["kubeskoop_netdev_txpackets"] - s.last["kubeskoop_netdev_txpackets"]
	bytes := now["kubeskoop_netdev_txbytes"] - s.last["kubeskoop_netdev_txbytes"]
	if s.last != nil && (got != packets || bytes != packets*1014) {
		s.t.Errorf("%s: %v packets and %v bytes more, want %v and %v", what, got, bytes, packets, packets*1014)
	}
	for name, was := range s.last {
		if now[name] < was {
			s.t.Errorf("%s: %s fell from %v to %v", what, name, was, now[name])
		}
	}
	s.last = now
}

func TestInterfacesByIdentity(t *testing.T) {
	for _, x := range []struct {
		name                string
		host, beside, again bool
	}{
		{"host", true, false, false}, {"pod", false, false, false}, {"pod beside its host", false, true, false},
		{"host, restarts", true, false, true}, {"pod, restarts", false, false, true}, {"pod beside its host, restarts", false, true, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			s := newStreet(t, x.host, x.beside, x.again)
			s.add(s.here, "nic")
			s.send(s.here, 50)
			s.want("first", 0)
			s.send(s.here, 10)
			s.want("goes on", 10)
			s.want("nothing", 0)

			s.add(s.here, "new")
			s.send(s.here, 7)
			s.want("created, and sends", 7)
			s.here.Run("ip", "link", "del", "new")
			s.want("deleted", 0)
			s.want("stays deleted", 0)

			s.here.Run("ip", "link", "set", "nic", "netns", fmt.Sprint(s.away.PID))
			s.want("moved out", 0)
			s.up(s.away, "nic")
			s.send(s.away, 100)
			s.want("sends elsewhere", 0)
			s.away.Run("ip", "link", "set", "nic", "netns", fmt.Sprint(s.here.PID))
			s.want("came back", 0)
			s.up(s.here, "nic")
			s.send(s.here, 5)
			s.want("sends here again", 5)

			s.add(s.here, "x")
			s.send(s.here, 20)
			s.add(s.here, "y")
			s.send(s.here, 30)
			s.want("two", 50)
			for _, r := range [][2]string{{"x", "z"}, {"y", "x"}, {"z", "y"}} {
				s.here.Run("ip", "link", "set", r[0], "down")
				s.here.Run("ip", "link", "set", r[0], "name", r[1])
			}
			s.want("swapped names", 0)
			s.up(s.here, "x")
			s.send(s.here, 3)
			s.want("one of them sends", 3)

			s.here.Run("ip", "link", "del", "x")
			s.add(s.here, "x")
			s.send(s.here, 60) // more than the previous one had counted
			s.want("replaced by its namesake", 60)
			s.here.Run("ip", "link", "set", "x", "down")
			s.here.Run("ip", "link", "set", "x", "name", "renamed")
			s.want("renamed", 0)
			s.here.Run("ip", "link", "del", "renamed")
			s.here.Run("ip", "link", "del", "y")
			s.here.Run("ip", "link", "del", "nic")
			s.want("all deleted", 0)
		})
	}
}

// spied is netdev, with the last cycle in which it entered each pod's namespace.
type spied struct {
	*netdev
	asked map[string]uint64
}

func (p *spied) Sample(v *collect.View) error {
	err := p.netdev.Sample(v)
	if v.Pod() != nil {
		if s := collect.State[interfaces](v); s.watched {
			p.asked[v.Pod().Name] = s.asked
		} else {
			p.asked[v.Pod().Name] = v.Cycle()
		}
	}
	return err
}

// TestInterfacesAreAskedForOnce: a namespace is not entered again while its own interfaces
// do not change.
func TestInterfacesAreAskedForOnce(t *testing.T) {
	s := newStreet(t, false, true, false)
	alone := nsnet.New(t) // without an ID in the host's namespace
	asked := map[string]uint64{}
	s.sampler = nsnet.NewSampler(t, collect.Options{Enabled: []string{"netdev"}, HostNetns: s.far.Path,
		Pods: &nsnet.Pods{List: []*owner.Pod{s.here.Pod("a"), s.away.Pod("b"), alone.Pod("c")}}},
		collect.Factory{Name: "netdev", New: func(env collect.Env) (collect.Probe, error) {
			p, err := newNetdev(env)
			if err != nil {
				return nil, err
			}
			return &spied{p.(*netdev), asked}, nil
		}})
	s.add(s.here, "x")
	s.add(s.away, "y")
	for range 3 {
		s.sampler.Sample()
	}
	before := maps.Clone(asked)
	step := func(what string, want ...string) {
		t.Helper()
		s.sampler.Sample()
		var got []string
		for _, name := range []string{"a", "b", "c"} {
			if asked[name] != before[name] {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v were asked, want %v", what, got, want)
		}
		before = maps.Clone(asked)
	}
	step("nothing", "c")
	s.send(s.away, 10)
	step("traffic", "c")
	s.add(s.here, "z")
	step("created", "a", "c")
	step("then nothing", "c")
	s.here.Run("ip", "link", "set", "z", "down")
	s.here.Run("ip", "link", "set", "z", "name", "zz")
	step("renamed", "a", "c")
	s.here.Run("ip", "link", "del", "zz")
	step("deleted", "a", "c")
	s.here.Run("ip", "link", "set", "x", "netns", fmt.Sprint(s.away.PID))
	step("moved", "a", "b", "c")
	step("then nothing", "c")
}

// TestKnownInterfaces: names that were read are those of the last sample, or not.
func TestKnownInterfaces(t *testing.T) {
	line := func(name string) (x ifaceLine) { copy(x.name[:], name); return x }
	for _, x := range []struct {
		list, read string
		began      bool
		missed     uint8
		want       bool
	}{
		{"a b", "a b", true, 0, true},
		{"a b", "b a", true, 0, true},
		{"", "", true, 0, true},
		{"a b", "a b", false, 0, false},
		{"a b", "a", true, 0, false},
		{"a", "a b", true, 0, false},
		{"a b", "a c", true, 0, false},
		{"a b", "a a", true, 0, false},
		{"a b", "a b", true, 1, false},
		{"a ?", "a ?", true, 0, false}, // an index that is not known
	} {
		s := interfaces{began: x.began}
		for i, name := range strings.Fields(x.list) {
			f := iface{index: int32(i + 7), missed: x.missed}
			if name == "?" {
				f.index = 0
			}
			copy(f.name[:], name)
			s.list = append(s.list, f)
		}
		for _, name := range strings.Fields(x.read) {
			s.read = append(s.read, line(name))
		}
		if got := s.known(true); got != x.want {
			t.Errorf("%q read after %q: %v", x.read, x.list, got)
		}
		for i := range s.read {
			f := s.named(&s.read[i].name)
			if want := x.want; want && (f == nil || s.read[i].index != f.index) {
				t.Errorf("%q read after %q: %q has the index %d", x.read, x.list, s.read[i].name, s.read[i].index)
			}
		}
	}
}

// TestInterfacesOfTheHost: cases that only the kernel's messages reveal.
func TestInterfacesOfTheHost(t *testing.T) {
	s := newStreet(t, true, false, false)
	s.want("first", 0)
	s.add(s.away, "hot", "index", "77")
	s.send(s.away, 200)
	s.away.Run("ip", "link", "set", "hot", "netns", fmt.Sprint(s.here.PID))
	s.want("moved in with a history and a higher index", 0)
	s.up(s.here, "hot")
	s.send(s.here, 4)
	s.want("sends here", 4)

	s.send(s.here, 6)
	s.here.Run("ip", "link", "del", "hot")
	s.want("sent until it was deleted", 6)
	s.add(s.here, "brief")
	s.send(s.here, 9)
	s.here.Run("ip", "link", "del", "brief")
	s.want("came and went within a cycle", 9)

	s.add(s.here, "same", "index", "90")
	s.send(s.here, 3)
	s.want("created", 3)
	s.here.Run("ip", "link", "del", "same")
	s.add(s.here, "same", "index", "90")
	s.send(s.here, 8)
	s.want("replaced by one of its name and index", 8)

	// A bridge reports its ports with the same message types.
	s.here.Run("ip", "link", "add", "br0", "type", "bridge")
	s.here.Run("ip", "link", "set", "same", "master", "br0")
	s.here.Run("ip", "link", "set", "same", "nomaster")
	s.want("a port of a bridge, and no more", 0)
}

// TestInterfaceGoesToAPod: an interface's counts before the move are the host's, and those
// after it the pod's.
func TestInterfaceGoesToAPod(t *testing.T) {
	s := newStreet(t, true, false, false)
	s.sampler = nsnet.NewSampler(t, collect.Options{Enabled: []string{"netdev"}, HostNetns: s.here.Path,
		Pods: &nsnet.Pods{List: []*owner.Pod{s.away.Pod("a")}}}, Probes()...)
	s.add(s.here, "hot", "index", "55")
	s.send(s.here, 40)
	s.sampler.Sample()
	s.here.Run("ip", "link", "set", "hot", "netns", fmt.Sprint(s.away.PID))
	s.up(s.away, "hot")
	s.send(s.away, 2)
	s.send(s.away, 1)
	v := s.sampler.Sample()
	v.Want(t, nsnet.Host, map[string]float64{"kubeskoop_netdev_txpackets": 40})
	got := v["a"]["kubeskoop_netdev_txpackets"]
	s.send(s.away, 5)
	v = s.sampler.Sample()
	v.Want(t, nsnet.Host, map[string]float64{"kubeskoop_netdev_txpackets": 40})
	// Packets between the move and the first sample cannot be told apart.
	if now := v["a"]["kubeskoop_netdev_txpackets"]; got > 3 || now != got+5 {
		t.Errorf("the pod: %v packets, then %v after 5 more", got, now)
	}
}

// TestNetdevEachCounterFalls: if one counter of an interface falls, the others are
// unaffected, and no sum falls.
func TestNetdevEachCounterFalls(t *testing.T) {
	const head = "Inter-|   Receive |  Transmit\n face |bytes packets errs drop|bytes packets errs drop\n"
	factory, err := newNetdev(collect.Env{})
	if err != nil {
		t.Fatal(err)
	}
	p := factory.(*netdev)
	start := [netdevFields]uint64{10_000_000_000, 8_000_000, 900, 120, 20_000_000_000, 9_000_000, 800, 700}
	for i, name := range p.fields {
		for _, x := range []struct {
			what            string
			now, want, then uint64 // want after the fall, then after 1000 more
		}{
			{"set to 0", 0, start[i], start[i] + 1000},
			{"set to 0, and counts on", start[i] / 10, start[i] + start[i]/10, start[i] + start[i]/10 + 1000},
			{"corrected", start[i] - start[i]/100, start[i], max(start[i], start[i]-start[i]/100+1000)},
		} {
			var s interfaces
			file := func(v [netdevFields]uint64) {
				t.Helper()
				text := head + "a:"
				for _, column := range []string{"rx.bytes", "rx.packets", "rx.errs", "rx.drop", "tx.bytes", "tx.packets", "tx.errs", "tx.drop"} {
					text += fmt.Sprint(" ", v[slices.Index(p.fields, column)])
				}
				if err := p.parse([]byte(text+"\n"), &s); err != nil {
					t.Fatal(err)
				}
			}
			v := start
			file(v)
			v[i] = x.now
			for j := range v {
				if j != i {
					v[j]++
				}
			}
			file(v)
			if got := s.sum(); got[i] != x.want {
				t.Errorf("%s is %s: %d, want %d", name, x.what, got[i], x.want)
			}
			v[i] += 1000
			file(v)
			got := s.sum()
			for j := range got {
				want := start[j] + 1
				if j == i {
					want = x.then
				}
				if got[j] != want {
					t.Errorf("%s is %s: then %s is %d, want %d", name, x.what, p.fields[j], got[j], want)
				}
			}
		}
	}
}

// TestSoftnetIsRecalled: 32-bit counters that have wrapped, and those of offline CPUs,
// continue after a restart.
func TestSoftnetIsRecalled(t *testing.T) {
	line := func(processed, cpu uint32) string {
		return fmt.Sprintf("%08x 00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 %08x\n", processed, cpu)
	}
	var s softnetState
	if b := s.Keep(nil); len(b) != 0 {
		t.Errorf("nothing is kept as %q", b)
	}
	for _, file := range []string{line(0xFFFFFFF0, 0) + line(50, 1), line(0x10, 0) + line(60, 1)} {
		if err := s.parse([]byte(file)); err != nil {
			t.Fatal(err)
		}
	}
	var again softnetState
	if err := again.Recall(s.Keep(nil)); err != nil {
		t.Fatal(err)
	}
	if err := again.parse([]byte(line(0x20, 0))); err != nil {
		t.Fatal(err)
	}
	if want := uint64(0x100000020 + 60); again.processed != want || again.dropped != 2 {
		t.Errorf("%d processed, %d dropped, want %d and 2", again.processed, again.dropped, want)
	}
}
