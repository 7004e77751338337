package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/nsnet"
)

// socketMessage makes a struct inet_diag_msg.
func socketMessage(s TCPSocket) []byte {
	msg := make([]byte, sizeofDiagMsg)
	msg[0], msg[1] = unix.AF_INET, s.State
	if s.Local.Addr().Is6() {
		msg[0] = unix.AF_INET6
	}
	binary.BigEndian.PutUint16(msg[4:], s.Local.Port())
	binary.BigEndian.PutUint16(msg[6:], s.Remote.Port())
	copy(msg[8:], s.Local.Addr().AsSlice())
	copy(msg[24:], s.Remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(msg[offsetOfRqueue:], s.RxQueue)
	binary.NativeEndian.PutUint32(msg[offsetOfWqueue:], s.TxQueue)
	return msg
}

func TestParseSocket(t *testing.T) {
	ap := netip.MustParseAddrPort
	for _, want := range []TCPSocket{
		{TCPEstablished, ap("10.0.0.1:34567"), ap("10.0.0.2:80"), 7, 9},
		{TCPListen, ap("[::]:8080"), ap("[::]:0"), 3, 128},
		{TCPCloseWait, ap("[fd00::1]:1"), ap("[fd00::2]:65535"), 1<<32 - 1, 0},
	} {
		if got, err := parseSocket(socketMessage(want)); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	mapped := socketMessage(TCPSocket{TCPEstablished, ap("[::ffff:10.0.0.1]:1"), ap("[::ffff:10.0.0.2]:2"), 0, 0})
	if got, err := parseSocket(mapped); err != nil || got.Local != ap("10.0.0.1:1") || got.Remote != ap("10.0.0.2:2") {
		t.Errorf("IPv4 in IPv6 is %+v, %v", got, err)
	}
	for _, bad := range [][]byte{nil, mapped[:sizeofDiagMsg-1]} {
		if _, err := parseSocket(bad); !errors.Is(err, errMalformed) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	for _, state := range []uint8{0, tcpStates} {
		if s, err := parseSocket(socketMessage(TCPSocket{State: state, Local: ap("10.0.0.1:1"), Remote: ap("10.0.0.2:2")})); err == nil {
			t.Errorf("the state %d is %+v", state, s)
		}
	}
}

func FuzzSocket(f *testing.F) {
	f.Add(socketMessage(TCPSocket{TCPListen, netip.MustParseAddrPort("[::]:8080"), netip.MustParseAddrPort("[::]:0"), 3, 128}))
	f.Add([]byte{unix.AF_INET})
	f.Fuzz(func(t *testing.T, msg []byte) {
		s, err := parseSocket(msg)
		if err != nil {
			return
		}
		if !s.Local.IsValid() || !s.Remote.IsValid() || s.Local.Addr().Is4In6() || s.State == 0 || s.State >= tcpStates {
			t.Errorf("%+v", s)
		}
	})
}

// TestListTCP: the listed sockets of a namespace are those of ss, with their queues, and
// none belongs to another namespace.
func TestListTCP(t *testing.T) {
	a, b := nsnet.New(t), nsnet.New(t)
	nsnet.Connect(a, b)
	listener := b.Listen("tcp", "10.0.0.2:80")
	b.Listen("tcp6", "[fd00::2]:81")
	client := a.Dial("tcp", "10.0.0.2:80")
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	a.Dial("tcp", "10.0.0.2:80") // waits in the accept queue
	if _, err := client.Write(make([]byte, 1234)); err != nil {
		t.Fatal(err)
	}
	// ss prints for each socket its state, its two queues and its two ends.
	bySS := func(s *nsnet.Space) (lines []string) {
		for line := range strings.Lines(s.Run("ss", "-Htan")) {
			f := strings.Fields(line)
			lines = append(lines, strings.Join(f[1:5], " "))
		}
		slices.Sort(lines)
		return lines
	}
	ours := func(s *nsnet.Space, most int) (lines []string, total int) {
		var list []TCPSocket
		var err error
		s.Do(func() { list, total, err = ListTCP(most) })
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range list {
			remote := x.Remote.String()
			if x.State == TCPListen {
				remote = map[bool]string{true: "0.0.0.0:*", false: "[::]:*"}[x.Remote.Addr().Is4()]
			}
			lines = append(lines, fmt.Sprintf("%d %d %s %s", x.RxQueue, x.TxQueue, x.Local, remote))
		}
		slices.Sort(lines)
		return lines, total
	}
	for _, s := range []*nsnet.Space{a, b} {
		testkit.Await(t, func() error {
			want := bySS(s)
			got, total := ours(s, 100)
			if !slices.Equal(got, want) || total != len(want) || s == b && len(want) != 4 || s == a && len(want) != 2 {
				return fmt.Errorf("%d sockets %q, ss has %q", total, got, want)
			}
			return nil
		})
	}
	got, _ := ours(b, 100)
	if want := "1234 0 10.0.0.2:80 " + client.LocalAddr().(*net.TCPAddr).String(); !slices.Contains(got, want) {
		t.Errorf("no %q in %q", want, got)
	}
	if !slices.ContainsFunc(got, func(s string) bool {
		return strings.HasPrefix(s, "1 ") && strings.HasSuffix(s, "10.0.0.2:80 0.0.0.0:*")
	}) {
		t.Errorf("no listener with one connection that waits in %q", got)
	}
	if few, total := ours(b, 1); len(few) != 1 || total != 4 {
		t.Errorf("of at most one: %q of %d", few, total)
	}
}
