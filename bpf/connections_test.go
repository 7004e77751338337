package bpf

import (
	"fmt"
	"testing"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// BenchmarkConnections walks the table with some numbers of sockets in it.
func BenchmarkConnections(b *testing.B) {
	need.Root(b)
	c, err := NewConnections(new(KernelTypes))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if shared, err := c.Shares(); !shared {
		b.Skip(err)
	}
	for _, n := range []int{0, 10_000, 50_000} {
		b.Run(fmt.Sprintf("%dsockets", n), func(b *testing.B) {
			nsnet.New(b).Sockets(n)
			b.ReportAllocs()
			start := testkit.OwnCPU()
			for b.Loop() {
				if _, err := c.Read(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(testkit.OwnCPU()-start)/float64(b.N), "cpu-ns/op")
		})
	}
}
