package bpf

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/hang"
	"nodeskoop/internal/testkit/need"
)

// heldFor is the maximum time that a test holds RTNL, for which the whole machine
// waits.
const heldFor = 8 * time.Second

// While another program holds RTNL, attached devices keep counting, and no caller
// of Hooks waits.
func TestFlowWhileRTNLIsHeld(t *testing.T) {
	eachDeviceKind(t, func(t *testing.T, l *testLoader, kind Kind) {
		r := newRouter(t)
		p := l.load("flow", Config{Devices: []string{"right", "plug*"}, Netns: r.path})
		s := r.b.listenUDP(t, netip.AddrPortFrom(r.b.v4, 0).Addr())
		conn := r.a.dial(t, "udp", addrPort(s.LocalAddr()))
		if state, limitations := p.State(); state != OK {
			t.Fatalf("before: %s %q", state, limitations)
		}
		datagrams := func() uint64 {
			packets, _ := sumFlows(t, p, func(f Flow) bool { return f.Netns == r.inode && f.Protocol == unix.IPPROTO_UDP })
			return packets
		}
		before := datagrams()
		// Attaching to a new device needs the lock.
		r.run(t, "ip", "link", "add", "plug1", "type", "veth", "peer", "name", "other")
		release := hang.RTNL(t, heldFor)
		begin := time.Now()
		p.Rescan()
		p.Rescan() // while the first scan is running
		hooks := p.Hooks()
		_, limitations := p.State()
		if took := time.Since(begin); took > heldFor/2 {
			t.Errorf("asking took %v", took)
		}
		if len(hooks) == 0 || !strings.Contains(fmt.Sprint(limitations), "RTNL") {
			t.Errorf("while the lock is held: %+v %q", hooks, limitations)
		}
		send(t, conn, 100)
		if after := datagrams(); after != before+100 {
			t.Errorf("%d packets of 100 were counted while the lock was held", after-before)
		}
		release()
		testkit.Await(t, func() error {
			p.Rescan()
			if state, limitations := p.State(); state != OK {
				return fmt.Errorf("afterwards: %q", limitations)
			}
			return nil
		})
		l.hookOf(p, kind, "plug1", "right")
	})
}

// A probe that waits for RTNL while loading does not block the loading of others,
// or the loader's accounts.
func TestLoadWhileRTNLIsHeld(t *testing.T) {
	l := newTestLoader(t, Options{})
	r := newRouter(t)
	release := hang.RTNL(t, heldFor)
	begin := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := l.Load("flow", Config{Devices: []string{"right"}, Netns: r.path})
		done <- err
	}()
	time.Sleep(300 * time.Millisecond) // let it start; any result is correct
	if _, err := l.Load("tcpretrans", Config{}); err != nil {
		t.Errorf("another probe: %v", err)
	}
	if _, err := l.Stats(); err != nil {
		t.Errorf("the accounts: %v", err)
	}
	if took := time.Since(begin); took > heldFor-time.Second {
		t.Errorf("they took %v, as long as the lock was held", took)
	}
	select {
	case err := <-done:
		t.Errorf("flow did not wait for the lock: %v", err)
	default:
	}
	release()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("flow, when the lock was free: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("flow is not loaded although the lock is free")
	}
}

// A panic inside a network namespace becomes an error, and no thread stays there.
func TestPanicInsideANamespace(t *testing.T) {
	need.Root(t)
	n := newNamespace(t)
	d, err := newDevices([]string{"eth0"}, fmt.Sprintf("/proc/self/fd/%d", int(n.handle)))
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := d.inside(func() error { panic("boom") }); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("the panic became %v", err)
	}
	if err := d.inside(func() error { return nil }); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
