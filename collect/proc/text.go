// Package proc holds the probes that read procfs, one file each. Their parsers
// work on the bytes of a whole file and allocate nothing where the file has the
// shape it had before. They are strict: what they do not understand is an error
// that names file, line and what was found, never a number made of the rest.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
)

// Probes returns the probes of this package.
func Probes() []collect.Factory {
	t := newTypeInfo()
	return []collect.Factory{
		{Name: "tcp", New: newTCP},
		{Name: "udp", New: newUDP},
		{Name: "ip", New: newIP},
		{Name: "tcpext", New: newTCPExt},
		{Name: "sock", New: newSock},
		{Name: "softnet", New: newSoftnet},
		{Name: "netdev", New: newNetdev},
		{Name: "ipvs", New: newIPVS},
		{Name: "io", New: t.newIO},
		{Name: "fd", New: t.newFD},
		{Name: "tcpsummary", New: newTCPSummary},
	}
}

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
	var bad *badLine
	return errors.As(err, &errno) || errors.As(err, &stuck) || errors.As(err, &bad)
}

// badLine says what is wrong with a line of a file.
type badLine struct {
	file string
	line int
	what string
}

func (e *badLine) Error() string { return fmt.Sprintf("%s line %d: %s", e.file, e.line, e.what) }

// lines goes through a file of text line by line.
type lines struct {
	file string // for errors: "net/snmp"
	rest []byte
	n    int // number of the line that next returned last
}

// next returns the next line without its newline. A last line without newline
// is an error: the file was cut, and a number in it may lack digits.
func (l *lines) next() (line []byte, ok bool, err error) {
	if len(l.rest) == 0 {
		return nil, false, nil
	}
	l.n++
	i := bytes.IndexByte(l.rest, '\n')
	if i < 0 {
		return nil, false, l.errorf("the file ends within it: %.40q", l.rest)
	}
	line, l.rest = l.rest[:i], l.rest[i+1:]
	return line, true, nil
}

// errorf words what is wrong with the line that next returned last.
func (l *lines) errorf(format string, args ...any) error {
	return &badLine{l.file, l.n, fmt.Sprintf(format, args...)}
}

// orMissing returns err, or else that a line is missing at the end of the file.
func orMissing(err error, l *lines, what string) error {
	if err != nil {
		return err
	}
	l.n++
	return l.errorf("%s", what)
}

// field splits the first field off b, at spaces and tabs. It is empty at the end.
func field(b []byte) (f, rest []byte) {
	i := 0
	for i < len(b) && (b[i] == ' ' || b[i] == '\t') {
		i++
	}
	j := i
	for j < len(b) && b[j] != ' ' && b[j] != '\t' {
		j++
	}
	return b[i:j], b[j:]
}

// parseUint reads an unsigned decimal number of up to 64 bits.
func parseUint(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	for _, c := range b {
		d := uint64(c - '0')
		if d > 9 || n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

// parseGauge reads a decimal number that the kernel adds up from per-CPU
// parts without a lock. The sum can be below 0 for a moment, and is then
// printed with a sign, or in 64 bits without; it stands for 0.
func parseGauge(b []byte) (n uint64, ok bool) {
	if len(b) > 1 && b[0] == '-' {
		_, ok = parseUint(b[1:])
		return 0, ok
	}
	n, ok = parseUint(b)
	if n > math.MaxInt64 {
		n = 0
	}
	return n, ok
}

var hexDigit = func() (t [256]uint8) {
	for i := range t {
		t[i] = 0xFF
	}
	for i := range uint8(10) {
		t['0'+i] = i
	}
	for i := range uint8(6) {
		t['a'+i], t['A'+i] = 10+i, 10+i
	}
	return t
}()

// parseHex reads a hexadecimal number of up to 64 bits.
func parseHex(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 16 {
		return 0, false
	}
	for _, c := range b {
		d := hexDigit[c]
		if d > 15 {
			return 0, false
		}
		n = n<<4 | uint64(d)
	}
	return n, true
}

// since32 returns how far a counter of 32 bits has come. One that seems to
// have come further than half way round has fallen, and is followed from there.
func since32(now, before uint32) uint64 {
	if d := now - before; d < 1<<31 {
		return uint64(d)
	}
	return 0
}
