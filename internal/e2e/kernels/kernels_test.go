package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestMirrors(t *testing.T) {
	for _, c := range []struct{ name, sources, archive, security string }{
		{"deb822", "Types: deb\n# http://snapshot.debian.org/archive/debian/2025\nURIs: http://mirror.example/debian\nSuites: bookworm\n\nTypes: deb\nURIs: http://mirror.example/debian-security/\n", "http://mirror.example/debian", "http://mirror.example/debian-security"},
		{"one line", "deb [arch=amd64 signed-by=/x] https://a.example/debian/ bookworm main\ndeb http://s.example/debian-security bookworm-security main\n", "https://a.example/debian", "http://s.example/debian-security"},
		{"others", "deb https://download.example/linux/debian bookworm stable\ndeb http://archive.ubuntu.com/ubuntu noble main\n", "", ""},
		{"commented out", "# deb http://a.example/debian bookworm main\n", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if a, s := mirrorsOf(c.sources); a != c.archive || s != c.security {
				t.Errorf("%q, %q", a, s)
			}
		})
	}
}

func TestImages(t *testing.T) {
	names := strings.Fields(`linux-image-cloud-amd64 linux-image-6.1.0-9-cloud-amd64 linux-image-6.1.0-50-cloud-amd64
		linux-image-6.1.0-51-cloud-amd64-dbg linux-image-6.1.0-52-cloud-amd64-unsigned linux-image-6.1.0-53-amd64
		linux-image-6.12.9+deb13-cloud-amd64 linux-image-6.12.12+deb12-cloud-amd64 linux-image-6.12.12+deb13-cloud-amd64
		linux-image-6.12.12+deb13.1-cloud-amd64 linux-image-7.3.4+deb13-cloud-amd64 linux-image-7.2.12+deb13-cloud-amd64
		linux-image-6.12.9+deb13-rt-amd64 linux-image-6.12.12+deb13-rt-amd64 linux-image-rt-amd64 linux-image-7.4.1+deb13-rt-amd64 linux-image-6.1.0-53-rt-amd64-dbg`)
	for series, want := range map[string][]string{
		"6.1":         {"linux-image-6.1.0-50-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64"},
		"6.12":        {"linux-image-6.12.12+deb13.1-cloud-amd64", "linux-image-6.12.12+deb13-cloud-amd64", "linux-image-6.12.12+deb12-cloud-amd64", "linux-image-6.12.9+deb13-cloud-amd64"},
		"6.12-rt":     {"linux-image-6.12.12+deb13-rt-amd64", "linux-image-6.12.9+deb13-rt-amd64"},
		"6.1-generic": {"linux-image-6.1.0-53-amd64"},
		"newest-rt":   {"linux-image-7.4.1+deb13-rt-amd64", "linux-image-6.12.12+deb13-rt-amd64", "linux-image-6.12.9+deb13-rt-amd64"},
		"6.1-rt":      nil,
		"5.10":        nil,
	} {
		if got := images(names, series); !slices.Equal(got, want) {
			t.Errorf("%s: %q", series, got)
		}
	}
	if got := images(names, newest); got[0] != "linux-image-7.3.4+deb13-cloud-amd64" {
		t.Errorf("newest: %q", got)
	}
}

func TestSeries(t *testing.T) {
	for release, want := range map[string]string{"6.1.0-50-cloud-amd64": "6.1", "6.12.117+deb13-cloud-arm64": "6.12", "6.12.118+deb13-rt-amd64": "6.12-rt", "6.1.0-53-amd64": "6.1-generic", "6.12-rt": "6.12-rt", "7": "7", "": ""} {
		if got := (&kernel{Release: release}).series(); got != want {
			t.Errorf("%s: %s", release, got)
		}
	}
}

func TestTake(t *testing.T) {
	files := tree{}
	for _, f := range []struct {
		h    tar.Header
		data string
	}{
		{tar.Header{Typeflag: tar.TypeReg, Name: "./bin/dash", Mode: 0o755}, "dash"},
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "./lib64/ld.so", Linkname: "/lib/ld.so"}, ""},
		{tar.Header{Typeflag: tar.TypeReg, Name: "./usr/share/doc/dash/README"}, "left out"},
		{tar.Header{Typeflag: tar.TypeReg, Name: "./usr/lib/x.a"}, "left out"},
		{tar.Header{Typeflag: tar.TypeLink, Name: "./usr/bin/again", Linkname: "./bin/dash"}, ""},
	} {
		if err := files.take(&f.h, strings.NewReader(f.data)); err != nil {
			t.Fatal(err)
		}
	}
	want := tree{"usr/bin/dash": {typeFile | 0o755, []byte("dash")}, "usr/bin/again": {typeFile | 0o755, []byte("dash")}, "usr/lib64/ld.so": {typeLink | 0o777, []byte("/lib/ld.so")}}
	if d := gocmp.Diff(want, files, gocmp.AllowUnexported(entry{})); d != "" {
		t.Error(d)
	}
	if err := files.take(&tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "nowhere"}, nil); err == nil {
		t.Error("a link to nothing was taken")
	}
}

// TestArchive reads an archive back as the kernel would.
func TestArchive(t *testing.T) {
	files := tree{}
	files.file("a/b/c", 0o644, []byte("hello"))
	files.file("init", 0o755, nil)
	files.link("bin", "usr/bin")
	var b bytes.Buffer
	if err := files.write(&b); err != nil {
		t.Fatal(err)
	}
	data := b.Bytes()
	var names []string
	for at := 0; ; {
		field := func(n int) int {
			v, err := strconv.ParseUint(string(data[at+6+8*n:at+14+8*n]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(v)
		}
		if string(data[at:at+6]) != "070701" {
			t.Fatalf("no entry at byte %d", at)
		}
		size, length := field(6), field(11)
		name := string(data[at+110 : at+110+length-1])
		if name == "TRAILER!!!" {
			break
		}
		names = append(names, name)
		at = (at + 110 + length + 3) &^ 3
		if content := string(data[at : at+size]); content != string(files[name].data) {
			t.Errorf("%s: %q", name, content)
		}
		at = (at + size + 3) &^ 3
	}
	if want := []string{"a", "bin", "init", "a/b", "a/b/c"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	if len(data)%4 != 0 {
		t.Errorf("%d bytes: another archive cannot follow", len(data))
	}
}

const output = `@boot 6.1.0-50-cloud-amd64 after 3.90 s
@module x.ko: exec format error
@run bpf
=== RUN   TestRungs
=== RUN   TestRungs/a/hooks=
    harness_test.go:1: proof: {"probe":"a","hook":"raw_tp, fentry","chosen":true,"lacks":["sight"]}
=== RUN   TestRungs/a/hooks=raw_tp
    harness_test.go:1: proof: {"probe":"a","hook":"raw_tp","taken":true}
=== RUN   TestRungs/a/hooks=kprobe
    harness_test.go:1: proof: {"probe":"a","hook":"kprobe","refused":"cannot work here: this kernel has no such function or tracepoint"}
    harness_test.go:1: this kernel: cannot
--- PASS: TestRungs (0.10s)
    --- PASS: TestRungs/a/hooks= (0.10s)
    --- PASS: TestRungs/a/hooks=raw_tp (0.10s)
    --- SKIP: TestRungs/a/hooks=kprobe (0.10s)
=== RUN   TestA
    a_test.go:5: proof: {"probe":"a","hook":"raw_tp","what":"x","caused":3,"counted":3}
    a_test.go:5: proof: {"probe":"a","hook":"raw_tp","what":"y","caused":4,"counted":4}
    a_test.go:6: proof: {"probe":"a","hook":"raw_tp, fentry","what":"y","caused":1,"counted":1}
    a_test.go:7: proof: {"probe":"udp","hook":"procfs","what":"y","caused":2,"counted":1}
    a_test.go:7: udp by procfs: y: 2 were caused, 1 counted
--- FAIL: TestA (0.10s)
FAIL

@end bpf 12.5 exit status 1
@run trace
=== RUN   TestB
    b_test.go:7: needs the moon
--- SKIP: TestB (0.00s)
PASS

@end trace 1.0 ok
@kernel BUG: something
@done 20.1 s
`

func TestRead(t *testing.T) {
	r := &report{machine: &machine{arch: "amd64", variant: plain, kernel: &kernel{Release: "6.1.0-50-cloud-amd64"}, tests: []test{{Name: "bpf"}, {Name: "trace"}, {Name: "gone"}}}}
	r.read(output)
	r.check()
	want := []support{
		{"amd64", "6.1", "a", byDefault, "raw_tp, fentry partly"},
		{"amd64", "6.1", "a", "raw_tp", "counts"},
		{"amd64", "6.1", "a", "kprobe", "refused: absent"},
		{"amd64", "6.1", "udp", byDefault, "counts wrong"},
	}
	if d := gocmp.Diff(want, r.supports(), gocmp.AllowUnexported(support{})); d != "" {
		t.Error(d)
	}
	if d := gocmp.Diff([]string{"bpf.TestA", "bpf: exit status 1", "gone: did not run", "trace.TestB is skipped: needs the moon"}, r.failed); d != "" {
		t.Error(d)
	}
	if d := gocmp.Diff([]string{"module x.ko: exec format error", "BUG: something"}, r.notes); d != "" {
		t.Error(d)
	}
	if r.release != "6.1.0-50-cloud-amd64" || r.passed != 3 || r.seconds != 13.5 || r.ok() {
		t.Errorf("%+v", r)
	}
	text := table([]*report{r})
	for _, line := range []string{
		"6.1     a      raw_tp, fentry  8       8        pass, partly  raw_tp 7/7; kprobe absent",
		"6.1     udp    procfs          2       1        FAIL",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%s\nhas no line %q", text, line)
		}
	}
}

func TestCompare(t *testing.T) {
	r := &report{machine: &machine{arch: "amd64", kernel: &kernel{Release: "6.1.0-50-cloud-amd64"}}}
	o := r.outcome("a", "raw_tp")
	o.taken, o.counts = true, 1
	r.outcome("a", "kprobe").refused = "this kernel has no such function or tracepoint"
	row := func(rung, result string) support { return support{"amd64", "6.1", "a", rung, result} }
	for _, c := range []struct {
		name     string
		table    []support
		failures int
	}{
		{"as expected", []support{row("raw_tp", "counts"), row("kprobe", "refused: absent")}, 0},
		{"of another architecture too", []support{row("raw_tp", "counts"), row("kprobe", "refused: absent"), {"arm64", "6.1", "a", "x", "counts"}}, 0},
		{"not listed", []support{row("raw_tp", "counts")}, 1},
		{"stopped working", []support{row("raw_tp", "counts"), row("kprobe", "counts")}, 1},
		{"works now", []support{row("raw_tp", "refused: absent"), row("kprobe", "refused: absent")}, 1},
		{"not tried", []support{row("raw_tp", "counts"), row("kprobe", "refused: absent"), row("fentry", "counts")}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			failures, notes := compare(r, c.table)
			if len(failures) != c.failures || len(notes) != 0 {
				t.Errorf("%q %q", failures, notes)
			}
			if again, _ := compare(r, updated(c.table, []*report{r})); len(again) != 0 {
				t.Errorf("after an update: %q", again)
			}
		})
	}
	if failures, notes := compare(r, nil); len(failures) != 0 || len(notes) != 1 {
		t.Errorf("an unknown kernel: %q %q", failures, notes)
	}
	r.outcome("b", byDefault).refused = "no"
	if failures, _ := compare(r, nil); len(failures) != 1 {
		t.Errorf("an unknown kernel on which b does not work: %q", failures)
	}
}

// TestSupportTable: the program would write the committed table unchanged.
func TestSupportTable(t *testing.T) {
	data, err := os.ReadFile("../../../testdata/support.tsv")
	if err != nil {
		t.Fatal(err)
	}
	table, err := parseSupport("support.tsv", data)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(formatSupport(table), data) {
		t.Error("support.tsv is not in order; write it with -update")
	}
	seen := map[string]bool{}
	for _, s := range table {
		if seen[s.key()] {
			t.Errorf("%s is there twice", s.key())
		}
		seen[s.key()] = true
		if s.result == "counts wrong" || strings.HasSuffix(s.result, ": other") {
			t.Errorf("%s: %q is nothing to expect", s.key(), s.result)
		}
	}
}

func TestReadmeTable(t *testing.T) {
	got := readmeTable([]support{
		{"amd64", "5.10", "a", byDefault, "fentry partly"}, {"amd64", "5.10", "a", "kprobe", "counts"},
		{"amd64", "6.1", "b", byDefault, "refused: absent"}, {"arm64", "6.1", "a", byDefault, "kprobe"},
	})
	want := "| probe | 5.10 | 6.1 | 6.1 arm64 |\n|---|---|---|---|\n| a | fentry (1) | - | kprobe |\n| b | - | no: absent | - |\n"
	if got != want {
		t.Errorf("%s", got)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(output)
	f.Fuzz(func(t *testing.T, text string) {
		r := &report{machine: &machine{arch: "amd64", variant: plain, kernel: &kernel{}}}
		r.read(text)
		r.check()
		table([]*report{r})
	})
}

func FuzzParseSupport(f *testing.F) {
	f.Add([]byte(supportHeader + "amd64\t6.1\ta\traw_tp\tcounts\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := parseSupport("x", data)
		if err != nil {
			return
		}
		again, err := parseSupport("x", formatSupport(table))
		if err != nil || !slices.Equal(again, table) {
			t.Errorf("%v: %v became %v", err, table, again)
		}
		readmeTable(table)
	})
}

// declared lists the names of all tests that the VMs can run.
func declared(t *testing.T) (names []string) {
	t.Helper()
	for _, p := range packages {
		files, err := filepath.Glob(filepath.Join("../../..", p, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no tests: %v", p, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				if name, ok := strings.CutPrefix(line, "func "); ok {
					name, _, _ = strings.Cut(name, "(")
					names = append(names, name)
				}
			}
		}
	}
	return names
}

// TestSeldom: each name in the list is a test's, so that a renamed test does not
// start to run on all kernels.
func TestSeldom(t *testing.T) {
	all := declared(t)
	for _, s := range seldom {
		for name := range strings.SplitSeq(s.tests, "|") {
			if !slices.Contains(all, name) {
				t.Errorf("no package has %s", name)
			}
			for _, k := range s.on {
				if listed("amd64", k) && !slices.ContainsFunc(betweenOn(k), func(pattern string) bool { return regexp.MustCompile(pattern).MatchString(name) }) {
					t.Errorf("%s never runs on %s: the table between does not have it", name, k)
				}
			}
		}
	}
}

// TestBetween: each name in the table is a test's, and each kernel is one that runs.
func TestBetween(t *testing.T) {
	all := declared(t)
	for _, b := range between {
		for name := range strings.SplitSeq(b.tests, "|") {
			match := regexp.MustCompile("^(" + name + ")$").MatchString
			if !slices.ContainsFunc(all, match) {
				t.Errorf("no package has %s", name)
			}
		}
		for _, k := range b.on {
			if !slices.Contains(series["amd64"], k) || !listed("amd64", k) {
				t.Errorf("%s: %s is no kernel between the oldest and the newest, and no flavour", b.why, k)
			}
		}
	}
}

// TestSuites: the tests of healthy traffic run on the oldest kernel and on the newest with
// real-time preemption, those of exact counts also on two between. The order of the requested
// kernels makes no difference.
func TestSuites(t *testing.T) {
	runs := func(k string, asked []string, name string) bool {
		o := &options{arch: "amd64", variants: plain, packages: strings.Join(packages, ",")}
		var found []*kernel
		for _, series := range asked {
			number, flavour, _ := strings.Cut(strings.Replace(series, newest, "7.3", 1), "-")
			found = append(found, &kernel{Release: number + ".1-" + cmp.Or(flavour, cloud) + "-amd64"})
		}
		ran, known := 0, false
		for _, m := range o.machines(found, "") {
			if m.kernel.series() != strings.Replace(k, newest, "7.3", 1) {
				continue
			}
			known = true
			match := func(flag string) bool {
				for _, a := range m.tests[0].Args {
					if pattern, ok := strings.CutPrefix(a, flag); ok {
						return regexp.MustCompile(pattern).MatchString(name)
					}
				}
				return flag == "-test.run="
			}
			if match("-test.run=") && !match("-test.skip=") {
				ran++
			}
		}
		if !known || ran > 1 {
			t.Fatalf("%s runs in %d VMs of %s", name, ran, k)
		}
		return ran == 1
	}
	for _, c := range []struct {
		test string
		on   []string
	}{
		{"TestRungs", series["amd64"]},
		{"TestHealthy", []string{"5.10", newest + "-rt"}},
		{"TestSocketlatencyHealthy", []string{"5.10", newest, newest + "-rt"}},
		{"TestTCPReset", series["amd64"]},
		{"TestPacketlossNetfilter", series["amd64"]},
		{"TestLossTCP", []string{"5.10", "6.1", "6.12", newest}},
		{"TestRoom", []string{"5.10"}},
		{"TestEventTime", []string{"5.10"}},
		{"TestLoad", nil},
	} {
		for _, k := range series["amd64"] {
			want := slices.Contains(c.on, k)
			for _, asked := range [][]string{series["amd64"], {k}} {
				if got := runs(k, asked, c.test); got != want {
					t.Errorf("%s on %s, of %v: %v", c.test, k, asked, got)
				}
			}
		}
	}
}

// TestMeasure: CPU time is assigned to the test that the output names last, a subtest's
// to its test.
func TestMeasure(t *testing.T) {
	output := filepath.Join(t.TempDir(), "log")
	script := `burn() { i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; }
burn; printf '@run bpf\n=== RUN   TestOne\n' > ` + output + `; burn; printf '=== RUN   TestOne/part\n' >> ` + output + `; burn
printf '=== RUN   TestTwo\n' >> ` + output + `; sleep 1`
	cmd := exec.Command("sh", "-c", script)
	stop, got := make(chan struct{}), make(chan costs, 1)
	if err := runChild(cmd, func(pid int) { go func() { got <- measure(pid, output, stop) }() }); err != nil {
		t.Fatal(err)
	}
	close(stop)
	c := <-got
	all := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if sum := c["boot"] + c["bpf"] + c["TestOne"] + c["TestTwo"]; len(c) == 0 || sum > all+20*time.Millisecond || c["TestOne/part"] != 0 {
		t.Errorf("%v, of %v", c, all)
	}
	table := costTable([]*report{{machine: &machine{kernel: &kernel{Release: "6.1.0"}, variant: plain, costs: costs{"TestOne": time.Second, "TestTwo": 2 * time.Second}}}}, 1)
	if !strings.Contains(table, "TestTwo") || strings.Contains(table, "TestOne") {
		t.Error(table)
	}
}
