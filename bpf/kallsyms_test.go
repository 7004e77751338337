package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit/need"
)

// Captured lines of several kernels: out of order, data symbols, several names for
// one address, compiler copies, a module, a BPF program, arm64's mapping symbols.
const kallsyms = `ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81cc1000 t tcp_v4_do_rcv
ffffffff81c8ad10 T tcp_rcv_state_process
ffffffff81cc2000 T tcp_v4_rcv
ffffffff81cc2c00 t tcp_v4_rcv.cold
ffffffff81cc3000 d some_data
ffffffff81cc2e00 t $x
ffffffff82000000 T _etext
0000000000000000 A fixed_percpu_data
ffffffffc0800000 t nft_do_chain	[nf_tables]
ffffffffc0801000 t nft_other	[nf_tables]
ffffffffc0a00000 t bpf_prog_6deef7357e7b4530_raw_kfree_skb	[bpf]

not a line
ffffffff81cc2f00 t
`

func symbolsOf(t *testing.T, text string) *Symbols {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kallsyms")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return &Symbols{path: path, now: time.Now}
}

func TestSymbols(t *testing.T) {
	s := symbolsOf(t, kallsyms)
	for _, c := range []struct {
		address            uint64
		location, function string
	}{
		{0, "", ""},
		{0xffffffff81cc1010, "tcp_v4_do_rcv+0x10", "tcp_v4_do_rcv"},
		// The return address of a call at a function's end is the start of the next
		// function.
		{0xffffffff81cc2000, "tcp_v4_do_rcv+0x1000", "tcp_v4_do_rcv"},
		{0xffffffff81cc2c10, "tcp_v4_rcv.cold+0x10", "tcp_v4_rcv"},
		{0xffffffff81c8ad15, "tcp_rcv_state_process+0x5", "tcp_rcv_state_process"},
		{0xffffffff81000010, "_stext+0x10", "_stext"},
		{0xffffffffc08003e8, "nft_do_chain+0x3e8 [nf_tables]", "nft_do_chain"},
		// Beyond the kernel's own code, and far behind a module's.
		{0xffffffff82000010, "0xffffffff82000010", ""},
		{0xffffffffc0a00000 + 2<<20, "0xffffffffc0c00000", ""},
		{0x1000, "0x1000", ""},
	} {
		if got := s.Location(c.address); got != c.location {
			t.Errorf("location of %#x: %q, want %q", c.address, got, c.location)
		}
		if got := s.Function(c.address); got != c.function {
			t.Errorf("function of %#x: %q, want %q", c.address, got, c.function)
		}
	}
	stack := s.Stack([]uint64{0xffffffffc0a00010, 0xffffffff81cc2c10, 0xffffffffc0a00010})
	if got := strings.Join(stack, "|"); got != "tcp_v4_rcv.cold+0x10|bpf_prog_6deef7357e7b4530_raw_kfree_skb+0x10 [bpf]" {
		t.Errorf("stack %q", got)
	}
}

// TestSymbolsRefresh loads a module: the next miss finds its code, but not before a
// second has passed.
func TestSymbolsRefresh(t *testing.T) {
	s := symbolsOf(t, kallsyms)
	now := time.Now()
	s.now = func() time.Time { return now }
	const address = 0xffffffffc1000010
	if got := s.Location(address); got != "0xffffffffc1000010" {
		t.Fatal(got)
	}
	if err := os.WriteFile(s.path, []byte(kallsyms+"ffffffffc1000000 t late\t[late]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(refreshAfter / 2)
	if got := s.Location(address); got != "0xffffffffc1000010" {
		t.Errorf("%s: read again at once", got)
	}
	now = now.Add(refreshAfter)
	if got := s.Location(address); got != "late+0x10 [late]" {
		t.Error(got)
	}
}

// TestSymbolsRefreshRarely looks up an unknown address repeatedly: the symbols are
// read again at growing intervals, until modules change.
func TestSymbolsRefreshRarely(t *testing.T) {
	need.Short(t)
	for name, text := range map[string]string{"unknown": kallsyms, "no addresses": "0000000000000000 T _text\n"} {
		t.Run(name, func(t *testing.T) {
			s := symbolsOf(t, text)
			s.modules = filepath.Join(t.TempDir(), "modules")
			if err := os.WriteFile(s.modules, []byte("a 1 0 - Live 0xffffffffc0700000\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			s.now = func() time.Time { return now }
			// Each attempt records its time.
			reads := func(d, step time.Duration) (n int) {
				for end := now.Add(d); now.Before(end); now = now.Add(step) {
					last := s.read
					if got := s.Location(0xffffffffc1000010); got != "0xffffffffc1000010" {
						t.Fatal(got)
					}
					if s.read != last {
						n++
					}
				}
				return n
			}
			// 0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, then each 900 s.
			if n := reads(time.Hour, 250*time.Millisecond); n != 11+2 {
				t.Errorf("read %d times in an hour", n)
			}
			if n := reads(2*time.Hour, 250*time.Millisecond); n != 8 {
				t.Errorf("read %d times in two hours", n)
			}
			// An unknown address in the kernel's own code triggers no reading.
			last := s.read
			now = now.Add(time.Hour)
			if name == "unknown" {
				s.table.end += 8 << 20
				if got := s.Location(0xffffffff82500010); got != "0xffffffff82500010" || s.read != last {
					t.Errorf("%s, read again: %v", got, s.read != last)
				}
			}
			// A module's address is found once the list of modules is read again.
			if err := os.WriteFile(s.path, []byte(kallsyms+"ffffffffc1000000 t late\t[late]\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.modules, []byte("late 1 0 - Live 0xffffffffc1000000\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			now = now.Add(compareAfter)
			if got := s.Location(0xffffffffc1000010); got != "late+0x10 [late]" {
				t.Error(got)
			}
		})
	}
}

func TestSymbolsHidden(t *testing.T) {
	s := symbolsOf(t, "0000000000000000 T _text\n0000000000000000 t tcp_v4_rcv\n")
	if err := s.Err(); !errors.Is(err, ErrNoAddresses) {
		t.Error(err)
	}
	if got := s.Location(0xffffffff81cc1010); got != "0xffffffff81cc1010" {
		t.Error(got)
	}
	if err := symbolsOf(t, "").Err(); err == nil {
		t.Error("an empty file passed for symbols")
	}
	s = &Symbols{path: filepath.Join(t.TempDir(), "absent"), now: time.Now}
	if err := s.Err(); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzParseSymbols(f *testing.F) {
	f.Add(kallsyms, uint64(0xffffffff81cc1010))
	f.Add("ffffffffffffffff t x", uint64(0))
	f.Fuzz(func(t *testing.T, text string, address uint64) {
		table, err := parseSymbols(strings.NewReader(text))
		if err != nil {
			return
		}
		for i := 1; i < len(table.symbols); i++ {
			if table.symbols[i-1].address >= table.symbols[i].address {
				t.Fatal("not sorted")
			}
		}
		if name, offset, ok := table.lookup(address); ok && (name == "" || offset > farthest) {
			t.Fatalf("%q+%#x", name, offset)
		}
	})
}

func BenchmarkSymbolsLoad(b *testing.B) {
	need.Root(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := NewSymbols().Err(); err != nil {
			b.Skip(err)
		}
	}
}
