package kernel

import (
	"bytes"
	"fmt"
	"math"
)

// BadLine is an error about a line of a file.
type BadLine struct {
	File string // path below /proc/PID
	Line int
	What string
}

func (e *BadLine) Error() string { return fmt.Sprintf("%s line %d: %s", e.File, e.Line, e.What) }

// Lines iterates over the lines of a text file.
type Lines struct {
	File string // for errors: "net/snmp"
	Rest []byte
	N    int // number of the last line returned by Next
}

// Next returns the next line without its newline. A last line without a newline is an
// error: the file was truncated, and a number in it may lack digits.
func (l *Lines) Next() (line []byte, ok bool, err error) {
	if len(l.Rest) == 0 {
		return nil, false, nil
	}
	l.N++
	i := bytes.IndexByte(l.Rest, '\n')
	if i < 0 {
		return nil, false, l.Errorf("the file ends within it: %.40q", l.Rest)
	}
	line, l.Rest = l.Rest[:i], l.Rest[i+1:]
	return line, true, nil
}

// Errorf returns a *BadLine about the last line returned by Next.
func (l *Lines) Errorf(format string, args ...any) error {
	return &BadLine{l.File, l.N, fmt.Sprintf(format, args...)}
}

// OrMissing returns err, or if that is nil an error that a line is missing at the end of
// the file.
func (l *Lines) OrMissing(err error, what string) error {
	if err != nil {
		return err
	}
	l.N++
	return l.Errorf("%s", what)
}

// Field splits the first field off b, at spaces and tabs. At the end of b it is empty.
func Field(b []byte) (f, rest []byte) {
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

// Uint parses an unsigned decimal number of up to 64 bits.
func Uint(b []byte) (n uint64, ok bool) {
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

// Gauge parses a decimal number that the kernel sums over CPUs without a lock. The sum may
// be negative for a moment, and is printed with a sign or as a 64-bit two's complement;
// Gauge returns 0 for it.
func Gauge(b []byte) (n uint64, ok bool) {
	if len(b) > 1 && b[0] == '-' {
		_, ok = Uint(b[1:])
		return 0, ok
	}
	n, ok = Uint(b)
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

// Hex parses a hexadecimal number of up to 64 bits.
func Hex(b []byte) (n uint64, ok bool) {
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

// Hex32 parses a hexadecimal number of up to 32 bits.
func Hex32(b []byte) (uint32, bool) {
	n, ok := Hex(b)
	return uint32(n), ok && n <= math.MaxUint32
}

// Since32 returns the increase of a 32-bit counter that may have wrapped. An increase of
// more than half the range counts as a decrease, for which it returns 0.
func Since32(now, before uint32) uint64 {
	if d := now - before; d < 1<<31 {
		return uint64(d)
	}
	return 0
}
