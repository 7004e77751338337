// Package tracked fills a table of tracked connections for tests.
package tracked

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"nodeskoop/internal/testkit/need"
)

// Limit returns the maximum number of tracked connections. It skips the test if that
// is above a million.
func Limit(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		t.Fatal(err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	need.Kernel(t, limit <= 1<<20, "a conntrack table too large to fill")
	return limit
}

// Established returns input for conntrack -R that creates n established connections.
// The kernel evicts none of them early.
func Established(n int) string {
	var w strings.Builder
	for i := range n {
		src := fmt.Sprintf("10.%d.%d.%d", 16+i>>16, i>>8&255, i&255)
		fmt.Fprintf(&w, "-I -s %s -d 10.2.0.1 -p tcp --sport 40000 --dport 443 -r 10.2.0.1 -q %s --reply-port-src 443 --reply-port-dst 40000"+
			" --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 600\n", src, src)
	}
	return w.String()
}
