package bpf

import (
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"slices"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// newUsers creates a namespace as an unprivileged user does; with uid 0, as root in
// a user namespace, such as a pod's.
func newUsers(t testing.TB, uid int) *namespace {
	t.Helper()
	need.Root(t)
	need.Program(t, "setpriv", "unshare", "cat")
	user := fmt.Sprint(uid)
	cmd := exec.Command("setpriv", "--reuid="+user, "--regid="+user, "--clear-groups",
		"unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo; exec cat")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	testkit.Hold(t, cmd)
	n := &namespace{handle: netns.None()}
	t.Cleanup(func() {
		if n.handle.IsOpen() {
			n.handle.Close()
		}
	})
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		need.Kernel(t, false, "users may make no namespaces")
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.handle = netns.NsHandle(fd)
	if n.inode, err = kernel.FileInode(fd); err != nil {
		t.Fatal(err)
	}
	n.run(t, "ip", "link", "set", "lo", "up")
	return n
}

var loopback = netip.MustParseAddr("127.0.0.1")

// refuse sends n datagrams and n SYNs to a closed port over lo: 2n lost packets and n
// resets.
func (n *namespace) refuse(t testing.TB, times int) {
	t.Helper()
	n.do(t, func() error {
		for range times {
			for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
				fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				if to := sockaddr(netip.AddrPortFrom(loopback, 9)); kind == unix.SOCK_DGRAM {
					err = unix.Sendto(fd, []byte("x"), 0, to)
				} else if err = unix.Connect(fd, to); err == unix.ECONNREFUSED {
					err = nil
				}
				unix.Close(fd)
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// exact checks that all occurrences caused by refuse are counted for the namespace.
func (l *testLoader) exact(loss, reset *Probe, what string, n *namespace, times uint64) {
	l.t.Helper()
	l.settled(reset, n.inode)
	l.settled(loss, n.inode)
	_, byClass, total := drops(l, loss, n.inode)
	resets := counters(l.t, reset, n.inode)
	if byClass[DropAbnormal] != times || byClass[DropTCPRcv] != times || total != 2*times {
		l.t.Errorf("%s: %d datagrams and %d segments lost, %d in all; want %d of each", what, byClass[DropAbnormal], byClass[DropTCPRcv], total, times)
	}
	if resets[ResetNosock] != times || resets[ResetReceive] != times {
		l.t.Errorf("%s: resets %v, want %d sent and %d received", what, resets[:4], times, times)
	}
}

// TestRoom fills the tables with unfollowed namespaces, created in each possible
// way, and checks the exact counts of followed ones: one known before, one that
// comes while the tables are full, and one whose first packets precede its
// registration.
func TestRoom(t *testing.T) {
	for name, make := range map[string]func(testing.TB) *namespace{
		"node":  newUnowned,
		"root":  func(t testing.TB) *namespace { return newUsers(t, 0) },
		"users": func(t testing.TB) *namespace { return newUsers(t, 65534) },
	} {
		t.Run(name, func(t *testing.T) { testRoom(t, name, make) })
	}
}

func testRoom(t *testing.T, name string, make func(testing.TB) *namespace) {
	early := newNamespace(t)
	l := newTestLoader(t, Options{Namespaces: 64, Drops: 64})
	loss, reset := l.load("packetloss", Config{}), l.load("tcpreset", Config{})
	early.refuse(t, 3)
	l.exact(loss, reset, "before", early, 3)

	var gone []uint64 // namespaces to delete at the end, whose numbers are then reused
	t.Run("full", func(t *testing.T) {
		unowned := 25 // more than the tables hold
		for range unowned {
			s := make(t)
			s.refuse(t, 2)
			gone = append(gone, s.inode)
		}
		l.t = t
		unknown := counters(t, reset, 0)
		if unknown[ResetNosock] == 0 {
			t.Error("the room is not full")
		}
		var all uint64 // sum of unowned namespaces and of occurrences without room
		if err := reset.Counters(func(netns NetnsID, slot int, n uint64) {
			if slot == ResetNosock && (netns == 0 || slices.Contains(gone, netns.Inode())) {
				all += n
			}
		}); err != nil {
			t.Fatal(err)
		}
		if all < uint64(2*unowned) {
			t.Errorf("%d resets are counted of %d", all, 2*unowned)
		}
		if refused, full, crowded := reset.Room(); refused == 0 || !full || !crowded {
			t.Errorf("nothing is said of the full table: refused %d, full %v, crowded %v", refused, full, crowded)
		}
		if state, limitations := reset.State(); state != Degraded || !slices.Contains(limitations, lackOfRoom) {
			t.Errorf("the state is %s: %v", state, limitations)
		}

		early.refuse(t, 4)
		l.exact(loss, reset, "known before", early, 7)
		// A namespace that comes while the tables are full.
		late := newNamespace(t)
		gone = append(gone, late.inode)
		late.refuse(t, 500)
		l.exact(loss, reset, "while full", late, 500)
		if name == "node" {
			return // an unknown namespace then shares the room with those that fill it
		}
		// Its packets precede its registration.
		unseen := newUnowned(t)
		gone = append(gone, unseen.inode)
		unseen.refuse(t, 5)
		l.exact(loss, reset, "not known", unseen, 5)
		following.add(t, unseen.netns())
		unseen.refuse(t, 6)
		l.exact(loss, reset, "known late", unseen, 11)
	})
	l.t = t

	// After their deletion there is room again, and Room no longer reports a full
	// table.
	for _, p := range []*Probe{loss, reset} {
		if err := p.Forget(l.ids(gone...)...); err != nil {
			t.Fatal(err)
		}
	}
	for range calmAfter + 1 {
		counters(t, reset, 0)
	}
	if _, full, _ := reset.Room(); full && name != "node" { // other programs of the machine create such namespaces
		t.Error("it is still said that the table is full")
	}
	one := make(t)
	one.refuse(t, 8)
	l.exact(loss, reset, "afterwards", one, 8)
	early.refuse(t, 1)
	l.exact(loss, reset, "at the end", early, 8)
}

// TestDropsWithoutRoom: drops that find no room in the table of reasons and
// locations count by class.
func TestDropsWithoutRoom(t *testing.T) {
	a, b := newPair(t)
	l := newTestLoader(t, Options{Drops: 16})
	p := l.load("packetloss", Config{})
	b.run(t, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in udp dport 7 counter drop")
	const n = 40
	for _, addrs := range families(a, b) {
		send(t, a.dial(t, "udp", netip.AddrPortFrom(addrs[1], 7)), n) // netfilter
		send(t, a.dial(t, "udp", netip.AddrPortFrom(addrs[1], 9)), n) // a closed port
	}
	b.refuse(t, n) // over lo: datagrams, and TCP segments, for a closed port
	l.settled(p, b.inode)
	byReason, byClass, total := drops(l, p, b.inode)
	want := [dropClasses]uint64{DropNetfilter: 2 * n, DropAbnormal: 3 * n, DropTCPRcv: n}
	if byClass != want || total != 6*n {
		t.Errorf("classes %v, %d in all, want %v", byClass, total, want)
	}
	var sum uint64
	for _, count := range byReason {
		sum += count
	}
	if byReason["OVERFLOW"] == 0 || sum != 6*n {
		t.Errorf("by reason: %v", byReason)
	}
	if state, limitations := p.State(); slices.Contains(limitations, lackOfRoom) {
		t.Errorf("its namespace has room, but the state is %s: %v", state, limitations)
	}
}

// TestRoomForFollowed: following more namespaces than the tables hold is an error,
// and Lacking lists those without counters.
func TestRoomForFollowed(t *testing.T) {
	a := newNamespace(t)
	l := newTestLoader(t, Options{Namespaces: 16})
	p := l.load("tcpreset", Config{})
	others := []Netns{a.netns()}
	for i := range 40 {
		others = append(others, Netns{Inode: 0xf8000000 + uint64(i)})
	}
	if err := l.Own(Netns{Inode: 1}, others[:5]); err != nil || len(p.Lacking()) != 0 {
		t.Errorf("%v, lacking %v", err, p.Lacking())
	}
	err := l.Own(Netns{Inode: 1}, others)
	if lacking := p.Lacking(); err == nil || len(lacking) == 0 || len(lacking) > 30 || slices.ContainsFunc(lacking, func(id NetnsID) bool { return id.Inode() == a.inode }) {
		t.Errorf("%v, lacking %v", err, lacking)
	}
	a.refuse(t, 3)
	if got := l.settled(p, a.inode); got[ResetNosock] != 3 {
		t.Errorf("%v", got)
	}
	// Deleting some makes room.
	for _, n := range others[5:] {
		if err := p.Forget(l.ids(n.Inode)...); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Own(Netns{Inode: 1}, others[:8]); err != nil || len(p.Lacking()) != 0 {
		t.Errorf("%v, lacking %v", err, p.Lacking())
	}
}

// TestShares divides a table.
func TestShares(t *testing.T) {
	owned := func(n int) (list []uint32) {
		for i := range n {
			list = append(list, uint32(100+i))
		}
		return list
	}
	for _, c := range []struct {
		n      int
		demand map[uint32]int
	}{{1, nil}, {3, nil}, {110, nil}, {110, map[uint32]int{100: 1 << 20}}, {110, map[uint32]int{100: 5000, 101: 1 << 20, 102: 200}}, {5000, nil}} {
		s := newShares(nil, 8192)
		s.demand = c.demand
		got := s.allot(owned(c.n))
		var sum, least uint32 = 0, 1 << 31
		for _, most := range got {
			sum += most
			least = min(least, most)
		}
		total := uint32(followed(8192))
		if int(sum) > max(int(total), c.n) || least < 1 || int(least) < int(total)/2/c.n {
			t.Errorf("%d namespaces asking for %v: %d of %d in all, %d at the least", c.n, c.demand, sum, total, least)
		}
		if c.n == 110 && c.demand != nil && got[100] < total/5 {
			t.Errorf("who asks for much gets %d, %d", got[100], got[101])
		}
	}
}

// TestEventRoom: unfollowed namespaces share one limit per type; a followed
// namespace within its own limit is not affected.
func TestEventRoom(t *testing.T) {
	a := newNamespace(t)
	l := newTestLoader(t, Options{EventRate: 0.001, EventBurst: 10})
	l.load("tcpreset", Config{})
	var unowned []uint64
	for range 30 {
		s := newUsers(t, 65534)
		s.refuse(t, 5)
		unowned = append(unowned, s.inode)
	}
	a.refuse(t, 10)
	heard := l.taken(TCPResetNosock, a.inode, 10)
	if len(heard) != 10 {
		t.Errorf("%d of 10 events of the quiet namespace", len(heard))
	}
	n := 0
	for _, e := range l.taken(TCPResetNosock, 0, 10) {
		if slices.Contains(unowned, e.Netns) {
			n++
		}
	}
	if n > 10 {
		t.Errorf("%d events of namespaces that share a limit of 10", n)
	}
	account := l.account(TCPResetNosock)
	if account.Suppressed < 140 || account.Seen != account.Written+account.Suppressed+account.Lost {
		t.Errorf("%+v", account)
	}
}
