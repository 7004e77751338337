package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEmptyConfigIsTheDefault(t *testing.T) {
	c, err := Parse("f.toml", "")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(values(Default()), values(c)); d != "" {
		t.Error(d)
	}
}

// values returns the values of all keys, and the labels.
func values(c *Config) map[string]any {
	v := map[string]any{}
	for _, s := range settings {
		v[s.Key] = s.value(c)
	}
	for _, l := range c.Pods.Labels {
		v["pods.labels."+l.Template.Name] = l.Text
	}
	return v
}

func TestConfigIsRead(t *testing.T) {
	c, err := Parse("f.toml", `
node_name = "n1"
interval = "1m30s"
compat_names = false
[probes]
enabled = ["all", "-flow", "-softirq"]
[probes.conntrack]
pods = true
[textfile]
dir = "/x"
mode = "0640"
max_series = 7
[metrics]
exclude = ["kubeskoop_ip*"]
[pods]
sockets = ["/a.sock"]
host_label = ""
[pods.labels]
app = "${labels:app}"
`)
	if err != nil {
		t.Fatal(err)
	}
	o := c.Options()
	if o.Node != "n1" || o.Interval != 90*time.Second || o.CompatNames || o.HostLabel != "" || o.MaxSeries != 7 ||
		len(o.Enabled) != 21 || slices.Contains(o.Enabled, "flow") || slices.Contains(o.Enabled, "net_softirq") ||
		o.Probes["conntrack"]["pods"] != true || o.Probes["ipvs"]["pods"] != false ||
		len(o.Labels) != 1 || len(o.Exclude) != 1 {
		t.Errorf("%+v", o)
	}
}

// Sizes and ages are parsed in their usual units.
func TestHistoryLimits(t *testing.T) {
	for text, want := range map[string]History{
		"64 MB":   {MaxAge: "14d"},
		"64MB":    {MaxAge: "336h"},
		"64 mb":   {MaxAge: "20160m"},
		"64000kb": {MaxAge: "14d"},
	} {
		c, err := Parse("f.toml", fmt.Sprintf("[history]\nmax = '%s'\nmax_age = '%s'", text, want.MaxAge))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if bytes, age := c.History.Limits(); bytes != 64_000_000 || age != 14*24*time.Hour {
			t.Errorf("%s, %s: %d bytes, %v", text, want.MaxAge, bytes, age)
		}
	}
	for text, want := range map[string]int64{"3 MiB": 3 << 20, "2 GiB": 2 << 30, "2048 KiB": 2 << 20, "100 GB": 100e9} {
		if n, err := parseSize(text); n != want || err != nil {
			t.Errorf("%s: %d, %v", text, n, err)
		}
	}
}

// Each mistake is reported with file, line and key, and with the valid values.
func TestConfigMistakes(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"unknown key":        {"\nintervall = 3", []string{"f.toml:2: intervall: unknown key; allowed here: node_name, interval,"}},
		"unknown in table":   {"[textfile]\nkeep = true\nfolder = 'x'", []string{"f.toml:3: textfile.folder: unknown key; allowed in [textfile]: dir, file, mode, keep, max_series"}},
		"unknown table":      {"[text]\n", []string{"f.toml:1: text: unknown key; allowed here:"}},
		"inline table":       {"textfile = { dir = '/x', dirr = '/y' }", []string{"f.toml:1: textfile.dirr: unknown key"}},
		"dotted":             {"textfile.dirr = '/y'", []string{"f.toml:1: textfile.dirr: unknown key"}},
		"not a table":        {"textfile = 5", []string{"f.toml:1: textfile: this is a table: write [textfile]"}},
		"wrong type string":  {"node_name = 5", []string{"f.toml:1: node_name: must be a string"}},
		"wrong type bool":    {"compat_names = 'yes'", []string{"f.toml:1: compat_names: must be true or false"}},
		"wrong type int":     {"[textfile]\nmax_series = '5'", []string{"f.toml:2: textfile.max_series: must be a whole number"}},
		"wrong type list":    {"[probes]\nenabled = 'tcp'", []string{"f.toml:2: probes.enabled: must be a list of strings"}},
		"list of ints":       {"[probes]\nenabled = [1]", []string{"f.toml:2: probes.enabled: must be a list of strings"}},
		"seconds as number":  {"interval = 15", []string{"f.toml:1: interval: must be a duration in quotes, such as \"15s\""}},
		"not a duration":     {"interval = '15'", []string{"f.toml:1: interval: \"15\" is not a duration"}},
		"too short":          {"interval = '1ms'", []string{"f.toml:1: interval: 1ms is out of range: use 1s to 1h0m0s"}},
		"negative":           {"interval = '-5s'", []string{"out of range"}},
		"too many":           {"[textfile]\nmax_series = -1", []string{"f.toml:2: textfile.max_series: -1 is out of range"}},
		"mode":               {"[textfile]\nmode = '999'", []string{"f.toml:2: textfile.mode: \"999\" is not a file mode"}},
		"mode nobody reads":  {"[textfile]\nmode = '0000'", []string{"not a file mode"}},
		"size":               {"[history]\nmax = '64'", []string{"f.toml:2: history.max: \"64\" is not a size: write a whole number and a unit"}},
		"size is a number":   {"[history]\nmax = 64", []string{"f.toml:2: history.max: must be a string"}},
		"size of a fraction": {"[history]\nmax = '1.5 GB'", []string{"is not a size"}},
		"size too small":     {"[history]\nmax = '999 KB'", []string{"f.toml:2: history.max: \"999 KB\" is out of range: use \"1 MB\" to \"100 GB\""}},
		"size too large":     {"[history]\nmax = '94 GiB'", []string{"is out of range"}},
		"age":                {"[history]\nmax_age = '14'", []string{"f.toml:2: history.max_age: \"14\" is not an age: write a number and a unit, such as \"14d\" or \"36h\""}},
		"age too short":      {"[history]\nmax_age = '59m'", []string{"f.toml:2: history.max_age: \"59m\" is out of range: use \"1h\" to \"3650d\""}},
		"age too long":       {"[history]\nmax_age = '9999999d'", []string{"is not an age"}},
		"history key":        {"[history]\nsize = '1 MB'", []string{"f.toml:2: history.size: unknown key; allowed in [history]: enabled, max, max_age"}},
		"file":               {"[textfile]\nfile = '../x.prom'", []string{"f.toml:2: textfile.file: must be a file name that ends in .prom"}},
		"file suffix":        {"[textfile]\nfile = 'x.txt'", []string{"must be a file name that ends in .prom"}},
		"unknown escalated":  {"[probes]\nescalate = ['flow', 'ping']", []string{"f.toml:2: probes.escalate: unknown probe \"ping\": the probes are biolatency, conntrack,"}},
		"unknown probe":      {"[probes]\nenabled = ['tcp', 'ping']", []string{"f.toml:2: probes.enabled: unknown probe \"ping\": the probes are biolatency, conntrack,"}},
		"unknown probe name": {"[probes.ping]\nx = 1", []string{"f.toml:1: probes.ping: unknown key; allowed in [probes]: enabled, escalate, [probes.biolatency], [probes.conntrack]"}},
		"probe option":       {"[probes.conntrack]\npod = true", []string{"f.toml:2: probes.conntrack.pod: unknown key; allowed in [probes.conntrack]: pods"}},
		"probe no options":   {"[probes.tcp]\npods = true", []string{"f.toml:2: probes.tcp.pods: unknown key; no key is allowed in [probes.tcp]"}},
		"glob":               {"[metrics]\nexclude = ['[']", []string{"f.toml:2: metrics.exclude: \"[\" is not a pattern"}},
		"socket":             {"[pods]\nsockets = ['x']", []string{"f.toml:2: pods.sockets: \"x\" is not an absolute path"}},
		"label name":         {"[pods.labels]\n__x = 'y'", []string{"f.toml:2: pods.labels.__x: label name"}},
		"label reference":    {"[pods.labels]\nok = 'y'\nx = '${app}'", []string{"f.toml:3: pods.labels.x:", "write ${labels:KEY}"}},
		"label type":         {"[pods.labels]\nx = 1", []string{"f.toml:2: pods.labels.x: must be a string"}},
		"level":              {"[log]\nlevel = 'loud'", []string{"f.toml:2: log.level: \"loud\" is not a level"}},
		"syntax":             {"interval = \n", []string{"f.toml:1: "}},
		"twice":              {"interval = '5s'\ninterval = '6s'", []string{"f.toml:2: "}},
		"several at once":    {"a = 1\ninterval = 5\n[pods]\nb = 2", []string{"f.toml:1: a:", "f.toml:2: interval:", "f.toml:4: pods.b:"}},
		"level and number":   {"[log]\nlevel = 'info+3'", []string{"f.toml:2: log.level: \"info+3\" is not a level"}},
		// A table that only its keys create has the line of the first of them.
		"dotted table":        {"\n\nb.z = 1\n", []string{"f.toml:3: b: unknown key"}},
		"dotted twice":        {"\n\nb.z.y = 1\nb.a = 2", []string{"f.toml:3: b: unknown key"}},
		"dotted probe":        {"\nprobes.ping.slow = '1s'", []string{"f.toml:2: probes.ping: unknown key; allowed in [probes]:"}},
		"header of a subkey":  {"\n[foo.bar]\nx = 1", []string{"f.toml:2: foo: unknown key"}},
		"list in a table":     {"\n[[foo.bar]]\nx = 1", []string{"f.toml:2: foo: unknown key"}},
		"key of a value":      {"\ninterval.x = '1s'", []string{"f.toml:2: interval: must be a duration in quotes"}},
		"key of a label":      {"\npods.labels.x.y = '1'", []string{"f.toml:2: pods.labels.x: must be a string"}},
		"dot in quotes":       {"'textfile.dir' = '/x'", []string{"f.toml:1: \"textfile.dir\": unknown key; allowed here: node_name,"}},
		"dot in quotes below": {"[probes]\n'net_softirq.slow' = '20ms'", []string{"f.toml:2: \"probes.net_softirq.slow\": unknown key; allowed in [probes]:"}},
		"table in quotes":     {"['probes.conntrack']\npods = true", []string{"f.toml:1: \"probes.conntrack\": unknown key"}},
		"twice by an alias":   {"[probes.softirq]\nslow = '20ms'\n[probes.net_softirq]\nslow = '30ms'", []string{"f.toml:2: probes.softirq.slow: line 4 sets it too"}},
		"folder with NUL":     {"[textfile]\ndir = \"/x\\u0000y\"", []string{"f.toml:2: textfile.dir: \"/x\\x00y\" has a control character"}},
		"folder of two lines": {"[state]\ndir = \"/x\\ny\"", []string{"f.toml:2: state.dir: \"/x\\ny\" has a control character"}},
		"file of two lines":   {"[textfile]\nfile = \"x\\ny.prom\"", []string{"f.toml:2: textfile.file: \"x\\ny.prom\" has a control character"}},
		"file is too long":    {"[textfile]\nfile = '" + strings.Repeat("é", 126) + ".prom'", []string{"f.toml:2: textfile.file: has 257 bytes: a file name has at most 255"}},
		"socket of two lines": {"[pods]\nsockets = [\"/x\\n\"]", []string{"has a control character"}},
		"namespace with NUL":  {"host_netns = \"/x\\u0000\"", []string{"f.toml:1: host_netns:"}},
		"empty key":           {"\"\" = 1", []string{"f.toml:1: : unknown key"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f.toml", c.text)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got  %v\nwant %s", err, w)
				}
			}
		})
	}
}

func TestSelectProbes(t *testing.T) {
	def, _ := SelectProbes([]string{"default"})
	if len(def) < 13 {
		t.Errorf("default: %v", def)
	}
	for sel, want := range map[string]string{
		"tcp,udp":             "tcp udp",
		"udp,tcp,udp":         "tcp udp",
		"softirq,netiftxlat":  "net_softirq netiftxlatency",
		"tcp,udp,-tcp":        "udp",
		"-tcp,tcp":            strings.Join(def, " "),
		"default,-default,ip": "ip",
		"":                    "",
	} {
		got, err := SelectProbes(strings.FieldsFunc(sel, func(r rune) bool { return r == ',' }))
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: %v, %v, want %s", sel, got, err, want)
		}
	}
	if all, _ := SelectProbes([]string{"all"}); len(all) != 23 {
		t.Errorf("all: %d", len(all))
	}
	if _, err := SelectProbes([]string{"-"}); err == nil {
		t.Error("\"-\" was accepted")
	}
}

// TestEscalate: probes.escalate takes what probes.enabled takes, with a default of its own,
// and an enabled probe is not in it.
func TestEscalate(t *testing.T) {
	const def = "kernellatency net_softirq netiftxlatency socketlatency virtcmdlatency"
	for text, want := range map[string]string{
		"":                               def,
		"escalate = ['default']":         def,
		"escalate = []":                  "",
		"escalate = ['flow', 'softirq']": "flow net_softirq",
		"escalate = ['-virtcmdlatency']": strings.TrimSuffix(def, " virtcmdlatency"),
		"escalate = ['all', '-flow']":    def,
		"escalate = ['default', 'flow']": "flow " + def,
		"enabled = ['all']":              "",
		"enabled = ['default', 'kernellatency', 'net_softirq']\nescalate = ['default']": "netiftxlatency socketlatency virtcmdlatency",
	} {
		c, err := Parse("f.toml", "[probes]\n"+text)
		if err != nil || strings.Join(c.Escalate, " ") != want {
			t.Errorf("%q: %v, %v, want %s", text, c.Escalate, err, want)
		}
	}
}

// folder creates a configuration file with drop-ins, and returns its name.
func folder(t *testing.T, main string, files map[string]string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nodeskoop.toml")
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if main != "absent" {
		write(file, main)
	}
	if files != nil {
		if err := os.Mkdir(Folder(file), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		write(filepath.Join(Folder(file), name), text)
	}
	return file
}

// Drop-ins are read after the main file, by name. The last value of a key wins, and
// its file is reported; other keys stay.
func TestConfigFolder(t *testing.T) {
	main := "interval = '20s'\nnode_name = 'main'\n[metrics]\nexclude = ['a']\n[pods.labels]\napp = 'main'\nz = 'main'\n"
	file := folder(t, main, map[string]string{
		"10-site.toml":  "node_name = 'site'\n[pods.labels]\napp = 'site'\nb = 'site'\n",
		"20-fleet.toml": "# of the fleet\n\nnode_name = 'fleet'\n[metrics]\nexclude = []\ninclude = ['kubeskoop_tcp*']\n",
		"30-no.toml~":   "node_name = 'backup'",
		".40-no.toml":   "node_name = 'hidden'",
		"50-no.conf":    "node_name = 'other'",
		"9-last.toml":   "[probes.biolatency]\nslow = '20ms'\n",
	})
	dir := Folder(file)
	c, err := Load(file, true)
	if err != nil {

		t.Fatal(err)
	}
	if c.NodeName != "fleet" || c.Interval != 20*time.Second || len(c.Metrics.Exclude) != 0 || len(c.Metrics.Include) != 1 {
		t.Errorf("%+v", c)
	}
	if want := []string{file, dir + "/10-site.toml", dir + "/20-fleet.toml", dir + "/9-last.toml"}; !slices.Equal(c.Files, want) || c.File != file {
		t.Errorf("read from %v, %s; want %v", c.Files, c.File, want)
	}
	var b bytes.Buffer
	if err := c.Write(&b, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\n# Set by " + file + ":1\ninterval = \"20s\"\n",
		"\n# Set by " + dir + "/20-fleet.toml:3\nnode_name = \"fleet\"\n",
		"\n# Set by " + dir + "/20-fleet.toml:5\nexclude = []\n",
		"\n# Default: false\nskip_zero = false\n",
		"\n# Set by " + dir + "/10-site.toml:3\napp = \"site\"\n# Set by " + dir + "/10-site.toml:4\nb = \"site\"\n# Set by " + file + ":7\nz = \"main\"\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("what is printed lacks %q:\n%s", want, &b)
		}
	}
	again, err := Parse("printed", b.String())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(values(c), values(again)); d != "" {
		t.Error(d)
	}
}

// Each mistake in each file is reported with file and line.
func TestConfigFolderMistakes(t *testing.T) {
	file := folder(t, "\ninterval = 5\n", map[string]string{"a.toml": "x = 1", "b.toml": "[metrics]\n\ninclude = ['[']", "c.toml": "[", "d.toml": "node_name = 'good'"})
	_, err := Load(file, false)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{file + ":2: interval: ", Folder(file) + "/a.toml:1: x: unknown key", Folder(file) + "/b.toml:3: metrics.include: \"[\" is not a pattern", Folder(file) + "/c.toml:1: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "d.toml") {
		t.Errorf("%v", err)
	}
}

func TestConfigFolderIsOptional(t *testing.T) {
	for name, file := range map[string]string{
		"no folder":        folder(t, "node_name = 'x'", nil),
		"empty folder":     folder(t, "node_name = 'x'", map[string]string{}),
		"no file":          folder(t, "absent", map[string]string{"x.toml": "node_name = 'x'"}),
		"neither of both":  folder(t, "absent", nil),
		"what is no .toml": "/dev/null",
	} {
		c, err := Load(file, false)
		if err != nil || c.NodeName != map[bool]string{true: "", false: "x"}[name == "neither of both" || file == "/dev/null"] {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A file named by the user must exist, whatever its drop-in folder contains.
	if _, err := Load(folder(t, "absent", map[string]string{"x.toml": ""}), true); err == nil || !strings.Contains(err.Error(), "nodeskoop config --default") {
		t.Errorf("%v", err)
	}
	// A drop-in that is not a file is an error, since the user meant it to be read.
	file := folder(t, "", map[string]string{})
	if err := os.Mkdir(filepath.Join(Folder(file), "x.toml"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file, true); err == nil || !strings.Contains(err.Error(), "x.toml") {
		t.Errorf("a folder called x.toml: %v", err)
	}
	many := map[string]string{}
	for i := range maxConfigFiles + 1 {
		many[fmt.Sprintf("%d.toml", i)] = ""
	}
	if _, err := Load(folder(t, "", many), true); err == nil || !strings.Contains(err.Error(), "101 files that end in .toml: 100 are the most") {
		t.Errorf("too many files: %v", err)
	}
}

// The output of `config` is a configuration file with the same meaning.
func TestConfigPrintsItself(t *testing.T) {
	text := "node_name = \"q\\\"\\\\\\n\\u0001é\"\ninterval = '2m'\n[probes]\nenabled = ['-tcp']\n[pods]\nsockets = ['/a', '/b']\n[pods.labels]\nx = 'a\"${labels:b}'\n"
	c, err := Parse("f.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := c.Write(&b, false); err != nil {
		t.Fatal(err)
	}
	again, err := Parse("printed", b.String())
	if err != nil {
		t.Fatalf("%v\n%s", err, &b)
	}
	if d := cmp.Diff(values(c), values(again)); d != "" {
		t.Error(d)
	}

	var shipped bytes.Buffer
	if err := c.Write(&shipped, true); err != nil {
		t.Fatal(err)
	}
	for _, s := range settings {
		if s.Help == "" || !strings.Contains(shipped.String(), "# "+s.Help+"\n# Default: ") {
			t.Errorf("%s is not explained in the shipped file", s.Key)
		}
	}
}

// With every # before a key removed, the shipped file is valid and equals the
// default.
func TestShippedConfig(t *testing.T) {
	b, err := os.ReadFile("../../../../packaging/nodeskoop.toml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse("shipped", string(b)); err != nil {
		t.Error(err)
	}
	var lines []string
	for _, l := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(l, "#") && !strings.HasPrefix(l, "# ") && !strings.HasPrefix(l, "#app") {
			l = l[1:]
		}
		lines = append(lines, l)
	}
	c, err := Parse("shipped, opened", strings.Join(lines, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(values(Default()), values(c)); d != "" {
		t.Error(d)
	}
}

func TestConfigFile(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "none.toml")
	if _, err := Load(missing, false); err != nil {
		t.Errorf("the default file may be absent: %v", err)
	}
	if _, err := Load(missing, true); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("a file that was named must be there: %v", err)
	}
	if _, err := Load(dir, true); err == nil {
		t.Error("a folder was read as a file")
	}
}

func TestShortDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		15 * time.Second: "15s", time.Minute: "1m", time.Hour: "1h", 90 * time.Second: "1m30s",
		100 * time.Millisecond: "100ms", 10 * time.Minute: "10m", time.Hour + time.Minute: "1h1m", 10 * time.Hour: "10h",
	} {
		got := shortDuration(d)
		if back, err := time.ParseDuration(got); got != want || err != nil || back != d {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("interval = '5s'\n[pods.labels]\na = 'b'\n[probes]\nenabled = ['-tcp']")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("f", text)
		if err != nil {
			return
		}
		if o := c.Options(); len(o.Labels) != len(c.Pods.Labels) || o.Interval <= 0 || c.Textfile.Perm() == 0 {
			t.Errorf("accepted, then not usable: %+v", o)
		}
	})
}

// nested are texts of 16 kB. Parsing one takes memory that grows with the square of the
// depth.
var nested = map[string]string{
	"a dotted key":     strings.Repeat("a.", 8000) + "a = 1\n",
	"a table's name":   "[" + strings.Repeat("a.", 8000) + "a]\n",
	"a list's name":    "[[" + strings.Repeat("a.", 8000) + "a]]\n",
	"quoted names":     strings.Repeat(`"a.b".`, 2600) + "a = 1\n",
	"lists":            "a = " + strings.Repeat("[", 8000) + strings.Repeat("]", 8000) + "\n",
	"lists over lines": "a = " + strings.Repeat("[\n", 5000) + strings.Repeat("]\n", 5000) + "\n",
	"inline tables":    "a = " + strings.Repeat("{a=", 4000) + "1" + strings.Repeat("}", 4000) + "\n",
	"dots and spaces":  strings.Repeat("a . ", 4000) + "a = 1\n",
	"after a string":   "b = \"\"\"\n[[[[\\\"\"\"\"\nc = '''[['''\nd = 'x#' # [[[[[[[[[[[[\n" + strings.Repeat("a.", 8000) + "a = 1\n",
}

func TestConfigIsBounded(t *testing.T) {
	for name, text := range nested {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Parse("x.toml", text)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), "x.toml:") || !strings.Contains(err.Error(), "nested more than 8 deep") {
			t.Errorf("%s: %.200v", name, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
			t.Errorf("%s: %d MB of memory", name, took>>20)
		}
	}
	// As many mistakes as a file may contain.
	for name, line := range map[string]string{"keys": "k%d = 1\n", "tables": "[t%d]\n", "lists of tables": "[[l]]\nx%d = 1\n", "labels": "[pods.labels]\n", "junk": "%d\x00\xff = [[\n"} {
		var b strings.Builder
		for i := 0; b.Len() < maxConfigSize-100; i++ {
			fmt.Fprintf(&b, strings.ReplaceAll(line, "%d", "%[1]d"), i)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Parse("x.toml", b.String())
		runtime.ReadMemStats(&after)
		if err == nil || len(err.Error()) > 64<<10 {
			t.Errorf("%s: a message of %d bytes", name, len(fmt.Sprint(err)))
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 400<<20 {
			t.Errorf("%s: %d MB of memory", name, took>>20)
		}
	}
	// Texts that look deeply nested but are not.
	for _, text := range []string{
		"node_name = \"[[[[[[[[[[[[a.b.c.d.e.f.g.h.i.j.k\"\n", "node_name = '''\n[[[[[[[[[[[[[\n'''\n", "# [[[[[[[[[[[[[[[[ a.a.a.a.a.a.a.a.a.a.a.a\n",
		"node_name = \"\"\"a\\\"\"\"\"\"\n", "[metrics]\nexclude = ['a', \"b\", '''c''', \"\"\"d\"\"\", 'e.f.g.h.i.j.k.l.m.n.o']\n", "node_name = \"\\\\\"\n[pods]\nnamespace = 'a.b.c.d.e.f.g.h.i.j.k'\n",
	} {
		if _, err := Parse("x.toml", text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}
