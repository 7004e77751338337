package faults

import (
	"strings"
	"testing"
	"time"
)

// TestRank: the right cause at a wrong end is not named, and of two faults either
// may be first.
func TestRank(t *testing.T) {
	o := outcome{names: []string{"closed-port", "wire-loss"}, causes: []string{"closed-port", "wire-loss"}, how: []string{"a", "b"}, blame: [][]string{{"shop/web-0"}, {"path"}}, proofs: []string{"p", "q"}}
	for _, c := range []struct {
		named string // findings as CAUSE@BLAME, in their order
		ranks [2]int
		first bool
	}{
		{"", [2]int{0, 0}, false},
		{"closed-port@shop/web-0", [2]int{1, 0}, true},
		{"closed-port@node", [2]int{0, 0}, false},
		{"slow-disk@node wire-loss@path", [2]int{0, 2}, false},
		{"wire-loss@path closed-port@shop/web-0", [2]int{2, 1}, true},
	} {
		o.Findings = nil
		for _, n := range strings.Fields(c.named) {
			cause, blame, _ := strings.Cut(n, "@")
			o.Findings = append(o.Findings, finding{Cause: cause, Blame: blame})
		}
		if got := [2]int{o.rank(0), o.rank(1)}; got != c.ranks || o.first() != c.first {
			t.Errorf("%q: ranks %v, first %v; want %v, %v", c.named, got, o.first(), c.ranks, c.first)
		}
	}
	text := string(page(10*time.Second, nil, []outcome{o}, nil))
	if want := "| closed-port, wire-loss | wire-loss, path | 2, 1 |  |"; !strings.Contains(text, want) {
		t.Errorf("the page has no %q:\n%s", want, text)
	}
}

// TestPairs: each pair consists of existing faults, and neither affects the whole
// machine.
func TestPairs(t *testing.T) {
	for _, d := range doubles {
		for _, cause := range d {
			if byName(t, cause).machine {
				t.Errorf("%v: %s is in trouble with all namespaces of the machine", d, cause)
			}
		}
	}
	for _, cause := range short {
		byName(t, cause)
	}
}
