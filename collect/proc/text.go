// Package proc holds the probes that read procfs, one file each. Their parsers
// work on the bytes of a whole file and allocate nothing where the file has the
// shape it had before. They are strict: what they do not understand is an error
// that names file, line and what was found, never a number made of the rest.
//
// prometheus/procfs reads the same files. It is the second opinion in the tests
// (TestLibrary), and not what the probes read through: it takes 4 to 11 times the CPU
// time (make bench, or go test -bench BenchmarkLibrary ./collect/proc, which runs both
// in turn), allocates for each value, and lacks some of the values of netstat that tcpext has.
package proc

import (
	"errors"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// metricsOf returns the metrics that a probe has to yield: all of its metrics
// but those that repeat another under a second name, which the Runner writes.
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

// partial reports whether a failed call about one process or namespace leaves
// the probe free to go on with others. After any other error Sample has to
// return at once: it was given up, and what it does is thrown away.
func partial(err error) bool {
	var errno unix.Errno
	var stuck *collect.StuckError
	var bad *kernel.BadLine
	return errors.As(err, &errno) || errors.As(err, &stuck) || errors.As(err, &bad)
}
