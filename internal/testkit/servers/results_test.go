package servers

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func someResults() []Result {
	one := func(workload string, path Path, probes string, cpu float64) Result {
		return Result{
			Server: "Redis", Workload: workload, Path: path, Probes: probes, Pairs: 12,
			CPU: Ratio{math.Round(1e4*cpu-100) / 1e4, cpu, math.Round(1e4*cpu+100) / 1e4}, ServerCPU: Ratio{1, 1, 1}, Rate: Ratio{0.8, 0.9, 1}, P99: Ratio{1, 1.5, 2},
			BaseCPU: 12.34, BaseRate: 56789, BaseP99: 400,
		}
	}
	return []Result{
		one("GET", Loopback, Default, 1.001), one("GET", Loopback, All, 1.1),
		one("GET", Veth, Default, 0.99), one("GET", Veth, All, 1.2), one("GET", Veth, "flow", 1.05),
	}
}

func TestResults(t *testing.T) {
	want := someResults()
	var text bytes.Buffer
	if err := Write(&text, "a machine", want); err != nil {
		t.Fatal(err)
	}
	machine, got, err := Read(bytes.NewReader(text.Bytes()))
	if err != nil || machine != "a machine" {
		t.Errorf("%q, %v", machine, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what was read is not what was written:\n%s", diff)
	}
	for name, bad := range map[string]string{
		"no heading":     strings.Replace(text.String(), columns, "", 1),
		"a column less":  strings.Replace(text.String(), "\t400\n", "\n", 1),
		"no number":      strings.Replace(text.String(), "\t400\n", "\tfour hundred\n", 1),
		"no whole pairs": strings.Replace(text.String(), "\t12\t", "\t1.5\t", 1),
	} {
		if _, r, err := Read(strings.NewReader(bad)); err == nil {
			t.Errorf("%s: no error, but %d results", name, len(r))
		}
	}
}

// FuzzRead: a damaged file gives an error or results, and never a panic.
func FuzzRead(f *testing.F) {
	var text bytes.Buffer
	if err := Write(&text, "a machine", someResults()); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes())
	f.Add([]byte("# \n" + columns + "\n\t"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, results, err := Read(bytes.NewReader(b)); err == nil {
			Table(&bytes.Buffer{}, results)
			TableAlone(&bytes.Buffer{}, results)
		}
	})
}

// TestTables: the most expensive workload comes first, and a missing measurement is an
// empty cell.
func TestTables(t *testing.T) {
	for name, c := range map[string]struct {
		write func(*bytes.Buffer)
		want  string
	}{
		"together": {func(b *bytes.Buffer) { Table(b, someResults()) }, `| server | requests | path | CPU of one without probes | CPU, default probes | CPU, all probes | rate, all probes | p99, all probes |
|---|---|---|---|---|---|---|---|
| Redis | GET | veth | 12 us | -1.0 % (-2.0 % to +0.0 %) | +20 % (+19 % to +21 %) | -10 % (-20 % to +0.0 %) | +50 % (+0.0 % to +100 %) |
| Redis | GET | loopback | 12 us | +0.1 % (-0.9 % to +1.1 %) | +10 % (+9.0 % to +11 %) | -10 % (-20 % to +0.0 %) | +50 % (+0.0 % to +100 %) |
`},
		"alone": {func(b *bytes.Buffer) { TableAlone(b, someResults()) }, `
| Redis | GET, veth | GET, loopback |
|---|---|---|
| default | -1.0 % (-2.0 % to +0.0 %) | +0.1 % (-0.9 % to +1.1 %) |
| all | +20 % (+19 % to +21 %) | +10 % (+9.0 % to +11 %) |
| flow | +5.0 % (+4.0 % to +6.0 %) |  |
`},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			c.write(&b)
			if diff := cmp.Diff(c.want, b.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
