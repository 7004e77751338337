package servers

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"nodeskoop/internal/testkit"
)

// Ratio is the ratio of values with probes to values without: the median over pairs,
// and the quartiles.
type Ratio struct{ Low, Mid, High float64 }

// RatioOf returns the Ratio of a list of ratios.
func RatioOf(v []float64) Ratio {
	return Ratio{testkit.Quantile(v, 0.25), testkit.Quantile(v, 0.5), testkit.Quantile(v, 0.75)}
}

// String is the change in percent, with its quartiles.
func (r Ratio) String() string {
	return fmt.Sprintf("%s (%s to %s)", percent(r.Mid), percent(r.Low), percent(r.High))
}

// percent formats the change in percent, with a decimal if the change is small.
func percent(ratio float64) string {
	change := (ratio - 1) * 100
	if change > -9.95 && change < 9.95 {
		return fmt.Sprintf("%+.1f %%", change)
	}
	return fmt.Sprintf("%+.0f %%", change)
}

// Result is the cost of a set of probes for one workload.
type Result struct {
	Server, Workload string
	Path             Path
	Probes           string // name of a probe, or of one of the sets below
	Pairs            int
	// CPU is the CPU time per operation of both ends, ServerCPU that of the server.
	CPU, ServerCPU, Rate, P99 Ratio
	// Medians of the turns without probes.
	BaseCPU  float64 // microseconds
	BaseRate float64 // operations per second
	BaseP99  float64 // microseconds
}

// Sets of probes, in addition to each probe alone.
const (
	// Hooks are programs that only return, at all places where All has programs.
	Hooks   = "hooks only"
	Default = "default"
	All     = "all"
)

// columns is the header line of a file of results.
const columns = "server\tworkload\tpath\tprobes\tpairs" +
	"\tcpu low\tcpu\tcpu high\tserver cpu low\tserver cpu\tserver cpu high\trate low\trate\trate high\tp99 low\tp99\tp99 high" +
	"\tus without\trate without\tp99 us without"

// Write writes results as a table separated by tabs, after a comment that names the
// machine.
func Write(w io.Writer, machine string, results []Result) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "# %s\n%s\n", machine, columns)
	for _, r := range results {
		fmt.Fprintf(b, "%s\t%s\t%s\t%s\t%d", r.Server, r.Workload, r.Path, r.Probes, r.Pairs)
		for _, x := range []Ratio{r.CPU, r.ServerCPU, r.Rate, r.P99} {
			fmt.Fprintf(b, "\t%.4f\t%.4f\t%.4f", x.Low, x.Mid, x.High)
		}
		fmt.Fprintf(b, "\t%.2f\t%.0f\t%.0f\n", r.BaseCPU, r.BaseRate, r.BaseP99)
	}
	return b.Flush()
}

// Read reads the output of Write.
func Read(r io.Reader) (machine string, results []Result, err error) {
	s := bufio.NewScanner(r)
	headed := false
	for n := 1; s.Scan(); n++ {
		line := s.Text()
		switch comment, is := strings.CutPrefix(line, "# "); {
		case is:
			machine = comment
			continue
		case line == columns:
			headed = true
			continue
		case !headed:
			return "", nil, fmt.Errorf("line %d: %.60q is not the heading of a table of results", n, line)
		}
		f := strings.Split(line, "\t")
		if len(f) != strings.Count(columns, "\t")+1 {
			return "", nil, fmt.Errorf("line %d has %d columns, not %d", n, len(f), strings.Count(columns, "\t")+1)
		}
		x := Result{Server: f[0], Workload: f[1], Path: Path(f[2]), Probes: f[3]}
		if x.Pairs, err = strconv.Atoi(f[4]); err != nil {
			return "", nil, fmt.Errorf("line %d: %w", n, err)
		}
		numbers := []*float64{
			&x.CPU.Low, &x.CPU.Mid, &x.CPU.High, &x.ServerCPU.Low, &x.ServerCPU.Mid, &x.ServerCPU.High,
			&x.Rate.Low, &x.Rate.Mid, &x.Rate.High, &x.P99.Low, &x.P99.Mid, &x.P99.High, &x.BaseCPU, &x.BaseRate, &x.BaseP99,
		}
		for i, to := range numbers {
			if *to, err = strconv.ParseFloat(f[5+i], 64); err != nil {
				return "", nil, fmt.Errorf("line %d: %w", n, err)
			}
		}
		results = append(results, x)
	}
	return machine, results, s.Err()
}

// row holds the results for one workload on one path, by set of probes.
type row struct {
	Result
	by map[string]Result
}

// rows groups results by workload and path. Rows in which All (or, without it, Default)
// takes the most CPU time come first.
func rows(results []Result) (list []row) {
	for _, r := range results {
		i := slices.IndexFunc(list, func(x row) bool {
			return x.Server == r.Server && x.Workload == r.Workload && x.Path == r.Path
		})
		if i < 0 {
			i = len(list)
			list = append(list, row{r, map[string]Result{}})
		}
		list[i].by[r.Probes] = r
	}
	slices.SortStableFunc(list, func(a, b row) int {
		return cmp.Or(cmp.Compare(b.by[All].CPU.Mid, a.by[All].CPU.Mid), cmp.Compare(b.by[Default].CPU.Mid, a.by[Default].CPU.Mid))
	})
	return list
}

// Table writes what the default probes and all probes cost each workload, in Markdown,
// the most expensive workload first.
func Table(w io.Writer, results []Result) {
	fmt.Fprint(w, "| server | requests | path | CPU of one without probes | CPU, default probes | CPU, all probes | rate, all probes | p99, all probes |\n|---|---|---|---|---|---|---|---|\n")
	for _, x := range rows(results) {
		def, all := x.by[Default], x.by[All]
		fmt.Fprintf(w, "| %s | %s | %s | %s us | %s | %s | %s | %s |\n", x.Server, x.Workload, x.Path, digits(x.BaseCPU),
			known(def, def.CPU), known(all, all.CPU), known(all, all.Rate), known(all, all.P99))
	}
}

// digits formats a number of microseconds with a sensible number of decimals.
func digits(us float64) string {
	return strconv.FormatFloat(us, 'f', max(0, 1-int(math.Log10(max(us, 1)))), 64)
}

// TableAlone writes what each set of probes costs each workload, in Markdown, with one
// table per server.
func TableAlone(w io.Writer, results []Result) {
	var sets []string
	for _, r := range results {
		if !slices.Contains(sets, r.Probes) {
			sets = append(sets, r.Probes)
		}
	}
	list := rows(results)
	for i, k := range Kinds {
		some := slices.DeleteFunc(slices.Clone(list), func(x row) bool { return x.Server != k.Name })
		if len(some) == 0 {
			continue
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "| %s |", k.Name)
		for _, x := range some {
			fmt.Fprintf(w, " %s, %s |", x.Workload, x.Path)
		}
		fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("---|", len(some)))
		for _, set := range sets {
			fmt.Fprintf(w, "| %s |", set)
			for _, x := range some {
				fmt.Fprintf(w, " %s |", known(x.by[set], x.by[set].CPU))
			}
			fmt.Fprintln(w)
		}
	}
}

// known formats a ratio of a result, "" if it was not measured.
func known(r Result, x Ratio) string {
	if r.Pairs == 0 {
		return ""
	}
	return x.String()
}
