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

// Symbols names the kernel's code addresses. It reads /proc/kallsyms when it
// is first asked and keeps it in one sorted table. It reads it again when
// modules have been loaded or removed since, for which it looks when it is
// asked for an address outside the kernel's own code; and, for the programs
// and trampolines that no list tells of, when an address lies where no known
// code is, though after a second at the soonest, and after twice as long each
// time that this did not help. Its methods may be called from several
// goroutines.
type Symbols struct {
	path    string
	modules string // the file /proc/modules
	now     func() time.Time

	mu         sync.Mutex
	table      symbolTable
	read       time.Time     // of the last attempt
	patience   time.Duration // for how long it stands although an address is missing
	err        error
	generation int // of the table
	// Which modules the table knows, and when that was compared last.
	known    string
	compared time.Time
	// loads, where set, counts the modules loaded so far; as of the last
	// comparison.
	loads     func() (uint64, bool)
	loadsThen uint64
}

// refreshAfter and refreshAtMost are between how long a table is trusted
// although an address is missing. To read it takes tens of milliseconds.
const (
	refreshAfter  = time.Second
	refreshAtMost = 15 * time.Minute
)

// compareAfter is how long a list of modules is trusted where nothing tells of
// modules that are loaded.
const compareAfter = 50 * time.Millisecond

// farthest is how long a function may be at most: an address farther behind
// the last symbol before it lies in code that the table does not know.
const farthest = 1 << 20

// ErrNoAddresses is the answer where the kernel shows its symbols without
// their addresses.
var ErrNoAddresses = errors.New("/proc/kallsyms shows no addresses: the process lacks CAP_SYSLOG, or the sysctl kernel.kptr_restrict is 2")

// NewSymbols gives a table that reads nothing until it is asked.
func NewSymbols() *Symbols {
	return &Symbols{path: "/proc/kallsyms", modules: "/proc/modules", now: time.Now}
}

// symbolTable holds names in one string, so that 100,000 symbols are two
// objects on the heap and not 100,000.
type symbolTable struct {
	symbols    []symbol
	names      string
	start, end uint64 // of the kernel's own code; 0: not known
}

type symbol struct {
	address uint64
	name    uint32 // where in names it starts
	length  uint16
}

func (t *symbolTable) text(s symbol) string { return t.names[s.name : s.name+uint32(s.length)] }

// Lookup gives the function in which the address lies, with its module in
// brackets if it has one, and how far into it.
func (s *Symbols) Lookup(address uint64) (name string, offset uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, offset, ok = s.table.lookup(address)
	if ok && (s.table.isKernel(address) || !s.staleNow()) {
		return name, offset, true
	}
	// A known address came here because modules have changed.
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

// Err tells why there are no symbols, if there are none.
func (s *Symbols) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read.IsZero() {
		s.load()
	}
	return s.err
}

// Refresh reads the symbols again if modules have been loaded or removed
// since, and tells why there are none.
func (s *Symbols) Refresh() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read.IsZero() || s.listModules() != s.known {
		s.load()
	}
	return s.err
}

// Stale reports whether modules have been loaded or removed since the symbols
// were read.
func (s *Symbols) Stale() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.read.IsZero() && s.listModules() != s.known
}

// Generation changes whenever the symbols are read again.
func (s *Symbols) Generation() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generation
}

// follow makes loads tell how many modules have been loaded so far.
func (s *Symbols) follow(loads func() (uint64, bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loads = loads
	s.compared = time.Time{}
}

// staleNow is Stale at the price of a look at a counter, or of a look at the
// list of modules now and then. The caller holds the lock.
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

// listModules gives the names and addresses of the modules that are loaded,
// without what changes from one moment to the next; "" where there are none.
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

// Location is a return address as symbol+0xoffset, or the bare address. The
// function is that of the call before the address: a call that ends a
// function returns, by its address, into the next one.
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

// Function is the name of the function that a return address lies in, without
// offset, module or the suffix of a compiler's copy, or "".
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

// Stack is a stack as locations, innermost first, without the frames that
// belong to the tracing itself.
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

// ranges gives where a function's code lies, for each part that the compiler
// made of it.
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

// starts gives the addresses of functions, wherever they lie.
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

// load reads the symbols. The caller holds the lock. The list of modules is
// read before: what is loaded meanwhile is found by the next comparison.
func (s *Symbols) load() {
	s.read, s.patience = s.now(), refreshAfter
	// As of this attempt, whether it works or not: else it would be made again
	// at each look.
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

// isKernel reports whether an address lies in the kernel's own code, which
// stays what it is.
func (t *symbolTable) isKernel(address uint64) bool {
	return address >= t.start && address < t.end
}

// startOfText and endOfText are no functions: they enclose the kernel's own
// code, beyond which lie modules and programs.
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

// parseSymbols reads lines of "address type name [module]" and keeps code.
// Lines that are none are skipped: the format has grown before.
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
		// arm64 marks where code and data begin by symbols of their own.
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
	// Stable: of several names for one address the first is the kernel's own
	// preference.
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
