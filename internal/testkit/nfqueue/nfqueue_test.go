package nfqueue

import (
	"net"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// TestVerdicts: of three datagrams one is accepted, one is dropped, and one arrives
// with another byte in it.
func TestVerdicts(t *testing.T) {
	need.Root(t)
	need.Program(t, "iptables")
	s := nsnet.New(t)
	var q *Queue
	var err error
	s.Do(func() { q, err = Open(7, true) })
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	go func() {
		_ = q.Serve(func(p Packet) {
			switch last := len(p.Data) - 1; p.Data[last] {
			case 'a':
				_ = q.Accept(p.ID)
			case 'b':
				_ = q.Drop(p.ID)
			default:
				changed := append([]byte(nil), p.Data...)
				changed[last] = 'd'
				// A checksum of 0 means that there is none.
				changed[26], changed[27] = 0, 0
				_ = q.Replace(p.ID, changed)
			}
		})
	}()
	s.Run("iptables", "-w", "-A", "OUTPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "7")
	server := s.Packets("udp4", "127.0.0.1:0")
	c := s.Dial("udp4", server.LocalAddr().String())
	for _, b := range []string{"a", "b", "c"} {
		if _, err := c.(*net.UDPConn).Write([]byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	got, b := "", make([]byte, 16)
	for range 2 {
		if err := server.SetReadDeadline(time.Now().Add(testkit.Patience)); err != nil {
			t.Fatal(err)
		}
		n, _, err := server.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		got += string(b[:n])
	}
	if got != "ad" {
		t.Errorf("%q arrived, want ad", got)
	}
}
