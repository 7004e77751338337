package bpf

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Symbols maps kernel code addresses to function names. It reads /proc/kallsyms on
// first use into one sorted table. It reads the file again if modules were loaded
// or removed, which it checks for addresses outside the kernel's own code. Programs
// and trampolines appear in no list of modules, so it also reads the file again if
// an address lies in unknown code: after a second at the earliest, and twice as
// late after each attempt that did not help. It is safe for concurrent use.
type Symbols struct {
	path    string
	modules string // the file /proc/modules
	now     func() time.Time

	mu         sync.Mutex
	table      symbolTable
	read       time.Time     // time of the last attempt
	patience   time.Duration // minimum age before an unknown address triggers a reading
	err        error
	generation int // number of the table
	// The modules that the table covers, and when they were last compared.
	known    string
	compared time.Time
	// loads, if set, returns the number of modules loaded so far, and its value at
	// the last comparison.
	loads     func() (uint64, bool)
	loadsThen uint64
}

// refreshAfter and refreshAtMost bound the age at which an unknown address triggers
// a reading. A reading takes tens of milliseconds.
const (
	refreshAfter  = time.Second
	refreshAtMost = 15 * time.Minute
)

// compareAfter is how long a list of modules is trusted if no counter of loaded
// modules is available.
const compareAfter = 50 * time.Millisecond

// farthest is the maximum size of a function. An address farther behind the
// preceding symbol lies in code that the table does not cover.
const farthest = 1 << 20

// ErrNoAddresses means that the kernel shows symbols without addresses.
var ErrNoAddresses = errors.New("/proc/kallsyms shows no addresses: the process lacks CAP_SYSLOG, or the sysctl kernel.kptr_restrict is 2")

// NewSymbols returns a table that reads nothing until its first use.
func NewSymbols() *Symbols {
	return &Symbols{path: "/proc/kallsyms", modules: "/proc/modules", now: time.Now}
}

// symbolTable keeps all names in one string, so that 100,000 symbols are two heap
// objects instead of 100,000.
type symbolTable struct {
	symbols    []symbol
	names      string
	start, end uint64 // bounds of the kernel's own code; 0 if unknown
}

type symbol struct {
	address uint64
	name    uint32 // offset of the name in names
	length  uint16
}

func (t *symbolTable) text(s symbol) string { return t.names[s.name : s.name+uint32(s.length)] }

// Lookup returns the function that contains the address, with its module in
// brackets if it has one, and the offset into it.
func (s *Symbols) Lookup(address uint64) (name string, offset uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, offset, ok = s.table.lookup(address)
	if ok && (s.table.isKernel(address) || !s.staleNow()) {
		return name, offset, true
	}
	// A known address gets here only if modules have changed.
	changed := ok || s.read.IsZero() || s.staleNow()
	if !changed && (s.table.isKernel(address) || s.now().Sub(s.read) < s.patience) {
		return "", 0, false
	}
	waited := s.patience
	s.load()
	if s.err == nil {
		name, offset, ok = s.table.lookup(address)
	} else {
		name, offset, ok = "", 0, false
	}
	if !changed && !ok {
		s.patience = min(2*waited, refreshAtMost)
	}
	return name, offset, ok
}

// Err returns why there are no symbols, or nil.
func (s *Symbols) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read.IsZero() {
		s.load()
	}
	return s.err
}

// Refresh reads the symbols again if modules were loaded or removed since, and
// returns why there are none.
func (s *Symbols) Refresh() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read.IsZero() || s.listModules() != s.known {
		s.load()
	}
	return s.err
}

// Stale reports whether modules were loaded or removed since the symbols were read.
func (s *Symbols) Stale() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.read.IsZero() && s.listModules() != s.known
}

// Generation returns a number that changes with every reading of the symbols.
func (s *Symbols) Generation() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generation
}

// follow sets the function that returns the number of modules loaded so far.
func (s *Symbols) follow(loads func() (uint64, bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loads = loads
	s.compared = time.Time{}
}

// staleNow is Stale at the cost of reading a counter, or, without one, the list of
// modules every compareAfter. The caller holds the lock.
func (s *Symbols) staleNow() bool {
	if s.loads != nil {
		if n, ok := s.loads(); ok {
			if n == s.loadsThen && !s.compared.IsZero() {
				return false
			}
			s.loadsThen, s.compared = n, s.now()
			return s.listModules() != s.known
		}
	}
	now := s.now()
	if !s.compared.IsZero() && now.Sub(s.compared) < compareAfter {
		return false
	}
	s.compared = now
	return s.listModules() != s.known
}

// listModules returns the names and addresses of the loaded modules, without
// volatile fields; "" if there are none.
func (s *Symbols) listModules() string {
	if s.modules == "" {
		return ""
	}
	text, err := os.ReadFile(s.modules)
	if err != nil {
		return ""
	}
	var list strings.Builder
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 6 {
			list.WriteString(f[0] + " " + f[5] + "\n")
		}
	}
	return list.String()
}

// Location formats a return address as symbol+0xoffset, or as the bare address if
// unknown. It looks up the call before the address: if a call is the last
// instruction of its function, the return address belongs to the next function.
func (s *Symbols) Location(address uint64) string {
	if address == 0 {
		return ""
	}
	name, offset, ok := s.Lookup(address - 1)
	if !ok {
		return "0x" + strconv.FormatUint(address, 16)
	}
	name, module, found := strings.Cut(name, " ")
	text := name + "+0x" + strconv.FormatUint(offset+1, 16)
	if found {
		text += " " + module
	}
	return text
}

// Function returns the name of the function that contains a return address, without
// offset, module or compiler suffix, or "".
func (s *Symbols) Function(address uint64) string {
	if address == 0 {
		return ""
	}
	name, _, ok := s.Lookup(address - 1)
	if !ok {
		return ""
	}
	name, _, _ = strings.Cut(name, " ")
	name, _, _ = strings.Cut(name, ".")
	return name
}

// Stack formats a stack as locations, innermost first, without the frames of the
// tracing itself.
func (s *Symbols) Stack(addresses []uint64) []string {
	lines := make([]string, 0, len(addresses))
	for _, address := range addresses {
		line := s.Location(address)
		if len(lines) == 0 && isTracing(line) {
			continue
		}
		lines = append(lines, line)
	}
	return lines
}

func isTracing(location string) bool {
	for _, prefix := range []string{"bpf_", "__bpf_", "__traceiter_", "trace_call_bpf"} {
		if strings.HasPrefix(location, prefix) {
			return true
		}
	}
	return false
}

// ranges returns the address ranges of the functions, one for each part that the
// compiler made.
func (s *Symbols) ranges(names []string) [][2]uint64 {
	if s.Err() != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found [][2]uint64
	for i, sym := range s.table.symbols {
		name, _, _ := strings.Cut(s.table.text(sym), ".")
		if i+1 < len(s.table.symbols) && slices.Contains(names, name) {
			found = append(found, [2]uint64{sym.address, s.table.symbols[i+1].address})
		}
	}
	return found
}

// starts returns the start addresses of all functions with these names.
func (s *Symbols) starts(names []string) (found []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sym := range s.table.symbols {
		name, _, _ := strings.Cut(s.table.text(sym), " ")
		if slices.Contains(names, name) {
			found = append(found, sym.address)
		}
	}
	return found
}

// load reads the symbols. The caller holds the lock. The list of modules is read
// first, so that the next comparison finds modules loaded in the meantime.
func (s *Symbols) load() {
	s.read, s.patience = s.now(), refreshAfter
	// Set even if this attempt fails, or each lookup would try again.
	s.known = s.listModules()
	f, err := os.Open(s.path)
	if err != nil {
		s.err = fmt.Errorf("kernel symbols: %w", err)
		return
	}
	defer f.Close()
	table, err := parseSymbols(f)
	if err != nil {
		s.err = fmt.Errorf("read %s: %w", s.path, err)
		return
	}
	s.table, s.err = table, nil
	s.generation++
}

// isKernel reports whether an address lies in the kernel's own code, which never
// changes.
func (t *symbolTable) isKernel(address uint64) bool {
	return address >= t.start && address < t.end
}

// startOfText and endOfText are symbols around the kernel's own code; modules and
// BPF programs lie outside.
const (
	startOfText = "_stext"
	endOfText   = "_etext"
)

func (t *symbolTable) lookup(address uint64) (string, uint64, bool) {
	i, found := slices.BinarySearchFunc(t.symbols, address, func(s symbol, a uint64) int {
		switch {
		case s.address < a:
			return -1
		case s.address > a:
			return 1
		}
		return 0
	})
	if !found {
		i--
	}
	if i < 0 {
		return "", 0, false
	}
	s := t.symbols[i]
	name := t.text(s)
	if name == endOfText || address-s.address > farthest {
		return "", 0, false
	}
	return name, address - s.address, true
}

// parseSymbols reads lines of "address type name [module]" and keeps code symbols.
// It skips malformed lines, since the format has grown before.
func parseSymbols(r io.Reader) (symbolTable, error) {
	var (
		symbols = make([]symbol, 0, 1<<16)
		names   strings.Builder
		zero    = true
		lines   int
		table   symbolTable
	)
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), 64<<10)
	for in.Scan() {
		line := in.Bytes()
		address, rest, ok := bytes.Cut(line, []byte(" "))
		if !ok || len(rest) < 3 || rest[1] != ' ' {
			continue
		}
		lines++
		a, err := strconv.ParseUint(string(address), 16, 64)
		if err != nil {
			continue
		}
		if a != 0 {
			zero = false
		}
		switch string(rest[2:]) {
		case startOfText:
			table.start = a
		case endOfText:
			table.end = a
		}
		switch rest[0] {
		case 't', 'T', 'w', 'W':
		default:
			continue
		}
		// A module follows in brackets, after a tab.
		name, module, _ := bytes.Cut(rest[2:], []byte("\t"))
		module = bytes.TrimSpace(module)
		name = bytes.TrimSpace(name)
		// Skip arm64's mapping symbols ($x, $d), which mark where code and data
		// begin.
		if len(name) == 0 || name[0] == '$' || len(name)+len(module) > 1<<12 || names.Len() > 1<<30 {
			continue
		}
		s := symbol{address: a, name: uint32(names.Len()), length: uint16(len(name))}
		names.Write(name)
		if len(module) > 0 {
			names.WriteByte(' ')
			names.Write(module)
			s.length += uint16(len(module)) + 1
		}
		symbols = append(symbols, s)
	}
	if err := in.Err(); err != nil {
		return symbolTable{}, err
	}
	if lines == 0 {
		return symbolTable{}, errors.New("it has no symbols (ProtectKernelTunables= in a systemd unit hides them)")
	}
	if zero {
		return symbolTable{}, ErrNoAddresses
	}
	// Stable, because the kernel lists its preferred name of an address first.
	slices.SortStableFunc(symbols, func(a, b symbol) int {
		switch {
		case a.address < b.address:
			return -1
		case a.address > b.address:
			return 1
		}
		return 0
	})
	symbols = slices.CompactFunc(symbols, func(a, b symbol) bool { return a.address == b.address })
	table.symbols, table.names = slices.Clip(symbols), names.String()
	return table, nil
}
