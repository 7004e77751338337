// Package proc has the probes that read procfs, one file each. Their parsers work on the
// bytes of a whole file, and allocate nothing if the file's layout is unchanged. They are
// strict: input that they do not understand is an error that names file, line and text,
// never a number made from the rest.
//
// prometheus/procfs reads the same files. The tests compare with it (TestLibrary), but the
// probes do not use it: it takes 4 to 11 times the CPU time (make bench, or go test -bench
// BenchmarkLibrary ./collect/proc, which alternates the two), allocates for each value, and
// lacks some values of netstat that tcpext has.
package proc

import (
	"errors"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// metricsOf returns the metrics that a probe must yield: all but the aliases, which the
// Runner writes.
func metricsOf(probe string) []*catalog.Metric {
	info := catalog.ProbeByName(probe)
	var out []*catalog.Metric
	for i := range info.Metrics {
		if m := &info.Metrics[i]; m.Alias == "" {
			out = append(out, m)
		}
	}
	return out
}

// partial reports whether the probe may continue after a failed call about one process or
// namespace. After any other error Sample must return at once: its worker was abandoned.
func partial(err error) bool {
	var errno unix.Errno
	var stuck *collect.StuckError
	var bad *kernel.BadLine
	return errors.As(err, &errno) || errors.As(err, &stuck) || errors.As(err, &bad)
}
