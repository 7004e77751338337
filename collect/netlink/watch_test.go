package netlink

import (
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/nsnet"
)

// watched is a host's namespace with a Watch, and two other namespaces.
type watched struct {
	t                *testing.T
	host, pod, other *nsnet.Space
	w                *Watch
}

func newWatched(t *testing.T) *watched {
	x := &watched{t: t, host: nsnet.New(t), pod: nsnet.New(t), other: nsnet.New(t)}
	var err error
	x.host.Do(func() { x.w, err = WatchLinks() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.w.Close() })
	return x
}

// open opens the file of a namespace.
func (x *watched) open(s *nsnet.Space) int {
	x.t.Helper()
	fd, err := unix.Open(s.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func (x *watched) id(fd int) int32 {
	x.t.Helper()
	id, err := x.w.ID(fd)
	if err != nil {
		x.t.Fatal(err)
	}
	return id
}

// give gives a namespace an ID in the host's.
func (x *watched) give(fd, id int) {
	x.t.Helper()
	var err error
	x.host.Do(func() { err = netlink.SetNetNsIdByFd(fd, id) })
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *watched) mark() uint64 {
	x.t.Helper()
	mark, err := x.w.Mark()
	if err != nil {
		x.t.Fatal(err)
	}
	return mark
}

func (x *watched) want(what string, id int32, mark uint64, want bool) {
	x.t.Helper()
	got, err := x.w.Changed(id, mark)
	if err != nil || got != want {
		x.t.Errorf("%s: changed is %v, want %v (%v)", what, got, want, err)
	}
}

func TestWatch(t *testing.T) {
	x := newWatched(t)
	pod, other := x.open(x.pod), x.open(x.other)
	if id := x.id(pod); id != NoID {
		t.Errorf("a namespace without an ID has %d", id)
	}
	x.want("without an ID", NoID, x.mark(), true)
	mark := x.mark()
	x.give(pod, 31)
	x.give(other, 32)
	if a, b := x.id(pod), x.id(other); a != 31 || b != 32 {
		t.Errorf("IDs %d and %d, want 31 and 32", a, b)
	}
	x.want("the ID was given since", 31, mark, true)

	mark = x.mark()
	x.want("nothing", 31, mark, false)
	x.host.Run("ip", "link", "add", "hv", "type", "veth", "peer", "name", "hw")
	x.want("one came in the host's", 31, mark, false)
	x.other.Run("ip", "link", "add", "ov", "type", "veth", "peer", "name", "ow")
	x.want("one came in another", 31, mark, false)
	x.want("one came there", 32, mark, true)

	for _, args := range []string{
		"add va type veth peer name vp", "set va name vb", "set vb up", "add vc type veth peer name vd", "del vc",
		fmt.Sprint("set vb netns ", x.other.PID),
	} {
		mark = x.mark()
		x.want("nothing", 31, mark, false)
		x.pod.Run("sh", "-c", "ip link "+args)
		x.want("ip link "+args, 31, mark, true)
		x.want("the same, asked again", 31, mark, true)
		x.want("after that", 31, x.mark(), false)
	}
	mark = x.mark()
	x.other.Run("ip", "link", "set", "ow", "netns", fmt.Sprint(x.pod.PID))
	x.want("one moved in", 31, mark, true)
	x.want("and out there", 32, mark, true)
}

// TestWatchLoses: after an overrun of the receive buffer every namespace counts as changed.
func TestWatchLoses(t *testing.T) {
	x := newWatched(t)
	pod, other := x.open(x.pod), x.open(x.other)
	x.give(pod, 31)
	x.give(other, 32)
	if err := unix.SetsockoptInt(x.w.events.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
	mark := x.mark()
	x.want("nothing", 31, mark, false)
	for i := range 20 {
		x.other.Run("ip", "link", "add", fmt.Sprint("d", i), "type", "veth", "peer", "name", fmt.Sprint("p", i))
	}
	x.want("some was lost", 31, mark, true)
	x.want("after that", 31, x.mark(), false)
}
