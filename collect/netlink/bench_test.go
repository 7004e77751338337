package netlink

import (
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/nsnet"
)

// BenchmarkDump compares one request for IPv4 and IPv6 sockets with one per family, in a
// namespace with two sockets. The cost is the walk through the connection table of all
// namespaces.
func BenchmarkDump(b *testing.B) {
	s := nsnet.New(b)
	l := s.Listen("tcp", "127.0.0.1:0")
	s.Dial("tcp", l.Addr().String())
	run := func(name string, dump func(*conn, *TCPTable) error) {
		b.Run(name, func(b *testing.B) {
			s.Do(func() {
				c, err := dial(unix.NETLINK_SOCK_DIAG, "TCP sockets", nil)
				if err != nil {
					b.Error(err)
					return
				}
				defer c.close()
				b.ReportAllocs()
				for b.Loop() {
					var t TCPTable
					if err := dump(&c, &t); err != nil || t.States[TCPEstablished] != 2 {
						b.Error(t, err)
						return
					}
				}
			})
		})
	}
	run("both", func(c *conn, t *TCPTable) error { return dumpBoth(c, tcpMask, t.counter(nil)) })
	run("families", func(c *conn, t *TCPTable) error {
		if err := dumpFamily(c, unix.AF_INET, tcpMask, t.counter(nil)); err != nil {
			return err
		}
		return dumpFamily(c, unix.AF_INET6, tcpMask, t.counter(nil))
	})
	var known TCPSockets
	run("one by one", func(c *conn, t *TCPTable) (err error) {
		if known.found == 0 {
			return dumpBoth(c, tcpMask, t.counter(&known))
		}
		return askTCP(c, t, known.all)
	})
}
