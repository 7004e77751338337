package trace

import (
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/testdata/nsnet"
)

// TestStrangersLeaveTheMaps: namespaces outside pods that come and go, as
// those of services with a private network do, leave nothing behind in any
// probe, whether it has metrics by namespace or not.
func TestStrangersLeaveTheMaps(t *testing.T) {
	l := newLab(t, EventLimits{}, nil, "flow", "packetloss", "tcpreset", "tcpretrans")
	l.values()
	strangers := map[uint64]bool{}
	t.Run("come and go", func(t *testing.T) {
		for range maxStrangers + 10 {
			s := nsnet.Make(t)
			strangers[s.Inode] = true
			var err error
			s.Do(func() { err = refusedConnection() })
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	held := func() map[string]int {
		n := map[string]int{}
		for p := range l.plane.probes {
			seen := map[uint64]bool{}
			note := func(netns uint64) {
				if strangers[netns] && !seen[netns] {
					seen[netns] = true
					n[p.kind.name]++
				}
			}
			if err := p.bpf.Counters(func(netns uint64, _ int, _ uint64) { note(netns) }); err != nil {
				t.Fatal(err)
			}
			if p.kind.name == flowKind.name {
				if err := p.bpf.Flows(func(f bpf.Flow) { note(f.Netns) }); err != nil {
					t.Fatal(err)
				}
			}
		}
		return n
	}
	before := held()
	for _, name := range []string{"flow", "packetloss", "tcpreset"} {
		if before[name] != len(strangers) {
			t.Errorf("%s holds something of %d namespaces, want %d", name, before[name], len(strangers))
		}
	}
	l.values()
	for name, n := range held() {
		t.Errorf("%s still holds something of %d namespaces that are gone", name, n)
	}
}

// refusedConnection asks a closed port over lo: a flow, a reset, and a packet
// that is dropped.
func refusedConnection() error {
	for _, typ := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
		fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}
		if typ == unix.SOCK_DGRAM {
			lo, err := unix.NewIfreq("lo")
			if err != nil {
				return err
			}
			lo.SetUint16(unix.IFF_UP)
			if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
				return err
			}
			err = unix.Sendto(fd, []byte("x"), 0, to)
			if err != nil {
				return err
			}
		} else if err := unix.Connect(fd, to); err != unix.ECONNREFUSED {
			return err
		}
		_ = unix.Close(fd)
	}
	return nil
}
