package unseen

import (
	"net"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
	"nodeskoop/internal/testkit/rawtp"
)

// TestRetransmissions: a timer's retransmissions are traced, and a BPF program counts all
// but those that Retransmissions reports.
func TestRetransmissions(t *testing.T) {
	need.Root(t)
	s := nsnet.New(t)
	need.Program(t, "nft")
	s.Run("nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in tcp dport 81 drop")
	count, tracing := rawtp.Count(t, events...), traced(t)
	unseen := Retransmissions(t)
	if n := tracing(); n != 0 {
		t.Fatalf("%d retransmissions were traced before the first", n)
	}
	s.Do(func() {
		if c, err := net.DialTimeout("tcp", "127.0.0.1:81", 4*time.Second); err == nil {
			c.Close()
			t.Error("somebody answered")
		}
	})
	testkit.Eventually(t, "retransmissions are traced", func() bool { return tracing() >= 2 })
	testkit.Eventually(t, "a program counts them", func() bool {
		n := tracing()
		missing := n - int(count())
		t.Logf("%d traced, %d of them not counted", n, missing)
		return missing == unseen() && missing < n
	})
}
