package history

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// valuesOf encodes entries and returns them as decoded.
func valuesOf(t testing.TB, bases []base, series int, in []entry) (out []entry) {
	t.Helper()
	e := encoder{entries: in}
	b := e.appendValues(nil, &names{list: make([]named, series), bases: bases})
	c := &content{based: len(bases), values: cursor{b: b}}
	lost, err := (&table{bases: bases}).each(c, func(s int, v, peak float64, gone bool) {
		out = append(out, entry{series: uint64(s), value: value{v: v, peak: peak}, gone: gone})
	})
	if err != nil || lost > 0 {
		t.Fatalf("%v, %d values lost of %v", err, lost, in)
	}
	return out
}

// TestValues: values of all kinds are read back unchanged, with any base and beside any
// others.
func TestValues(t *testing.T) {
	const top = 1<<53 - 1
	counter, gauge := &Series{Kind: Counter}, &Series{Kind: Gauge}
	var counters, gauges []value
	for _, v := range []float64{1, 2, 63, 64, 1e6, 1 << 32, top, 1 << 53, 1e300, 0.5, math.SmallestNonzeroFloat64} {
		counters = append(counters, value{of: counter, v: v})
	}
	for _, v := range []float64{0, 1, -1, 80, top, 0.25, -1e300} {
		gauges = append(gauges, value{of: gauge, v: v, peak: v}, value{of: gauge, v: v, peak: v + 3*math.Abs(v) + 1}, value{of: gauge, v: v, peak: v + 3*math.Abs(v) + 0.5})
	}
	rnd := rand.New(rand.NewPCG(5, 5))
	for round := range 2000 {
		kinds := make([]Kind, 1+rnd.IntN(60))
		bases := make([]base, rnd.IntN(len(kinds)+1))
		for i := range kinds {
			kinds[i] = Kind(rnd.IntN(2))
			if i < len(bases) {
				bases[i] = base{kind: kinds[i], set: rnd.Uint64N(5), value: float64(rnd.Uint64() & top >> rnd.IntN(54))}
			}
		}
		setLeads(bases)
		var in, want []entry
		for i, k := range kinds {
			x := entry{series: uint64(i)}
			switch {
			case rnd.IntN(3) == 0:
				continue
			case k == Counter:
				x.value = counters[rnd.IntN(len(counters))]
			case rnd.IntN(5) == 0:
				x.value, x.gone = value{of: gauge}, true
			default:
				x.value = gauges[rnd.IntN(len(gauges))]
			}
			in = append(in, x)
			if k == Counter || !x.peaked() {
				x.peak = x.v
			}
			x.of = nil
			want = append(want, x)
		}
		if got := valuesOf(t, bases, len(kinds), in); !slices.Equal(got, want) {
			t.Fatalf("round %d: %s", round, cmp.Diff(want, got, cmp.AllowUnexported(entry{}, value{})))
		}
	}
}

// TestExpect: values that equal their prediction take one byte each: counters that grow
// in proportion to their lead, and unchanged gauges.
func TestExpect(t *testing.T) {
	var list []named
	minute := func(factors ...float64) (all []entry) {
		for set, factor := range factors {
			for i, v := range []float64{1e6, 3e5, 7e4, 1000, 10} {
				all = append(all, entry{series: uint64(len(all)), value: value{of: list[5*set+i].Series, v: v * factor, peak: v * factor}})
			}
		}
		return all
	}
	for set := range uint64(2) {
		for _, kind := range []Kind{Counter, Counter, Counter, Counter, Gauge} {
			list = append(list, named{&Series{Metric: string(rune('a' + len(list)%5)), Kind: kind}, set})
		}
	}
	bases := basesOf(list, minute(1, 40))
	for _, c := range []struct {
		what    string
		factors []float64
		bytes   int
	}{
		{"as in the first frame", []float64{1, 40}, 10},
		// The two leads differ from their bases, by four bytes at most, and so do the
		// gauges.
		{"more traffic of one, less of the other", []float64{1.7, 24}, 8 + 4 + 4},
	} {
		e := encoder{entries: minute(c.factors...)}
		if b := e.appendValues(nil, &names{list: list, bases: bases}); len(b)-1 > c.bytes {
			t.Errorf("%s: %d bytes, want %d at most", c.what, len(b)-1, c.bytes)
		}
	}
}

// TestBases: similar values of one metric have their mean as base, and others their own
// value.
func TestBases(t *testing.T) {
	var list []named
	var all []entry
	want := []float64{36, 43, 43, 60, 5000, 6100, 0} // 43 is the mean of the first four
	for i, v := range []float64{36, 37, 38, 60, 5000, 6100, 0.5} {
		s := &Series{Metric: "a"}
		list = append(list, named{s, uint64(i)})
		all = append(all, entry{series: uint64(i), value: value{of: s, v: v}})
	}
	for i, b := range basesOf(list, all) {
		if b.value != want[i] {
			t.Errorf("the base of %v is %v, want %v", all[i].v, b.value, want[i])
		}
	}
}

// TestOtherFormat: frames of an older or newer format are skipped and counted, and do not
// count as damage.
func TestOtherFormat(t *testing.T) {
	dir := filepath.Join(t.TempDir(), Folder)
	want := randomHistory(t, dir, newClock(), rand.New(rand.NewPCG(1, 2)), 3)
	b, err := os.ReadFile(only(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	length, _, _ := header(b)
	of := func(version byte) []byte {
		other := slices.Clone(b[:headerSize+length])
		other[anyMagic] = version
		binary.LittleEndian.PutUint32(other[12:], crc32.Checksum(other[:12], castagnoli))
		return other
	}
	var r Reader
	got := replayOf(r.minutes(slices.Concat(of(1), b, of(3), of(255)), Query{}))
	if d := cmp.Diff(want, got, near); d != "" || r.Damage.Foreign != 3 || r.Damage.Frames+r.Damage.Values+int(r.Damage.Bytes) != 0 {
		t.Errorf("%+v\n%s", r.Damage, d)
	}
	if err := r.Damage.Err(dir); err == nil || !strings.Contains(err.Error(), "3 minutes of the history in "+dir+" are left out: another version of nodeskoop wrote them") {
		t.Error(err)
	}
}
