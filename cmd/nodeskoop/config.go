package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
)

// defaultConfigFile is read where no other is named; it may be absent.
const defaultConfigFile = "/etc/nodeskoop/nodeskoop.toml"

// Config is the effective configuration.
type Config struct {
	File string // where it was read from, "" if nowhere

	obsolete []string          // what the file says of options that have no effect any more
	values   map[string]any    // by key, as settings declares them
	labels   map[string]string // [pods.labels]
	probes   []string          // the probes to run, by name
}

// setting declares one key of the configuration file.
type setting struct {
	key   string // with its tables, joined by dots
	def   any    // its default; its type is the key's
	help  string
	check func(any) error
}

// settings are all keys but those of [pods.labels], in the file's order.
var settings = declareSettings()

func declareSettings() []setting {
	s := []setting{
		{"node_name", "", "The value of the label k8s_node. Empty: $NODE_NAME, else the host's name.", nil},
		{"interval", 15 * time.Second, "Time between two samples.", durationIn(time.Second, time.Hour)},
		{"timeout", 2 * time.Second, "Longest that one probe may take on one pod or namespace before it is given up.", durationIn(10*time.Millisecond, time.Minute)},
		{"compat_names", true, "Also write the metric names that dashboards of the original use (kubeskoop_fd_openfd, kubeskoop_io_readbytes, ...).", nil},
		{"host_netns", "", "A file that is the host's network namespace. Empty: that of process 1, which is the host's unless this is a container with a PID namespace of its own.", nil},

		{"probes.enabled", []string{"default"}, "Probes to run: names, \"default\", \"all\", and \"-NAME\" to leave one out.", func(v any) error {
			_, err := selectProbes(v.([]string))
			return err
		}},
	}
	for _, p := range catalog.Probes() {
		for _, o := range p.Options {
			if o.Obsolete != "" {
				continue
			}
			s = append(s, setting{"probes." + p.Name + "." + o.Key, o.Default, upperFirst(o.Help) + ".", checkOption(o)})
		}
	}
	return append(s, []setting{
		{"textfile.dir", "/var/lib/prometheus/node-exporter", "The folder that node_exporter reads (its flag --collector.textfile.directory).", notEmpty},
		{"textfile.file", "nodeskoop.prom", "The file's name; it must end in .prom.", func(v any) error {
			if s := v.(string); !strings.HasSuffix(s, ".prom") || s == ".prom" || strings.Contains(s, "/") {
				return errors.New("must be a file name that ends in .prom, without a folder: node_exporter reads no other")
			}
			return nil
		}},
		{"textfile.mode", "0644", "The file's permissions, octal. node_exporter must be able to read it.", func(v any) error {
			_, err := parseMode(v.(string))
			return err
		}},
		{"textfile.keep", false, "Leave the file in place on a clean stop. node_exporter then goes on serving its last values.", nil},
		{"textfile.max_series", int64(50000), "Most series of one file; what is left out is counted in nodeskoop_series_left_out. 0: no limit.", intIn(0, 10_000_000)},

		{"state.dir", "", "The folder of what the next start goes on from. Empty: $STATE_DIRECTORY, which systemd sets, else " + defaultStateDir + ".", func(v any) error {
			if d := v.(string); d != "" && !filepath.IsAbs(d) {
				return fmt.Errorf("%q is not an absolute path", d)
			}
			return nil
		}},
		{"state.counters", true, "Keep what deleted interfaces, ended processes and the BPF programs had counted, so that no counter falls when the daemon restarts, nor between two samples of `nodeskoop collect`.", nil},

		{"metrics.exclude", []string{}, "Names of metrics to leave out; * and ? match as in a shell.", globs},
		{"metrics.skip_zero", false, "Leave out counters of a pod that have been 0 since the start.", nil},

		{"journal.rate", int64(20), "Events a second that one event type and pod may send to the journal.", intIn(1, 100_000)},
		{"journal.burst", int64(100), "Events that one event type and pod may send at once.", intIn(1, 100_000)},
		{"journal.total_rate", int64(200), "Events a second over all types and pods, for those that have more to say than the limits above let them: who keeps below them is heard whatever the others do.", intIn(1, 100_000)},

		{"pods.sockets", []string{}, "Sockets of containerd to try, in this order. Empty: the usual ones, those of k3s, rke2, k0s and microk8s included.", func(v any) error {
			for _, s := range v.([]string) {
				if !filepath.IsAbs(s) {
					return fmt.Errorf("%q is not an absolute path", s)
				}
			}
			return nil
		}},
		{"pods.namespace", "*", "Namespaces of containerd to follow, separated by commas; \"*\": all. Kubernetes' pods are in k8s.io.", notEmpty},
		{"pods.host_label", owner.DefaultHostLabel, "The value of k8s_namespace and k8s_pod for the host's own series; \"\" suits dashboards made for the original.", nil},

		{"log.level", "info", "debug, info, warn or error.", func(v any) error {
			var l slog.Level
			if err := l.UnmarshalText([]byte(v.(string))); err != nil {
				return fmt.Errorf("%q is not a level: use debug, info, warn or error", v)
			}
			return nil
		}},
		{"log.format", "text", "text or json.", func(v any) error {
			if v != "text" && v != "json" {
				return fmt.Errorf("%q is not a format: use text or json", v)
			}
			return nil
		}},
	}...)
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func checkOption(o catalog.Option) func(any) error {
	switch o.Default.(type) {
	case time.Duration:
		return durationIn(time.Microsecond, time.Hour)
	case int64:
		return intIn(1, 1_000_000)
	case []string:
		return globs
	}
	return nil
}

// globs checks patterns of the form that path.Match takes.
func globs(v any) error {
	for _, g := range v.([]string) {
		if _, err := path.Match(g, ""); err != nil {
			return fmt.Errorf("%q is not a pattern: %w", g, err)
		}
	}
	return nil
}

func durationIn(lo, hi time.Duration) func(any) error {
	return func(v any) error {
		if d := v.(time.Duration); d < lo || d > hi {
			return fmt.Errorf("%v is out of range: use %v to %v", d, lo, hi)
		}
		return nil
	}
}

func intIn(lo, hi int64) func(any) error {
	return func(v any) error {
		if n := v.(int64); n < lo || n > hi {
			return fmt.Errorf("%d is out of range: use %d to %d", n, lo, hi)
		}
		return nil
	}
}

func notEmpty(v any) error {
	if v.(string) == "" {
		return errors.New("must not be empty")
	}
	return nil
}

func parseMode(s string) (fs.FileMode, error) {
	m, err := strconv.ParseUint(s, 8, 32)
	if err != nil || m > 0o777 || m&0o400 == 0 {
		return 0, fmt.Errorf("%q is not a file mode: use octal digits, such as \"0644\"", s)
	}
	return fs.FileMode(m), nil
}

// selectProbes turns a selection (names, aliases, "default", "all", "-NAME")
// into the names of probes, sorted. A selection that only leaves out starts
// from the default.
func selectProbes(selection []string) ([]string, error) {
	chosen := map[string]bool{}
	set := func(on bool, match func(*catalog.Probe) bool) {
		for _, p := range catalog.Probes() {
			if match(p) {
				chosen[p.Name] = on
			}
		}
	}
	isDefault := func(p *catalog.Probe) bool { return p.Default }
	if len(selection) > 0 && strings.HasPrefix(selection[0], "-") {
		set(true, isDefault)
	}
	for _, s := range selection {
		name, out := strings.CutPrefix(s, "-")
		switch p := catalog.ProbeByName(name); {
		case name == "all":
			set(!out, func(*catalog.Probe) bool { return true })
		case name == "default":
			set(!out, isDefault)
		case p != nil:
			chosen[p.Name] = !out
		default:
			return nil, fmt.Errorf("unknown probe %q: the probes are %s; also \"default\", \"all\", and -NAME to leave one out", name, probeNames())
		}
	}
	var names []string
	for n, on := range chosen {
		if on {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names, nil
}

func probeNames() string {
	var names []string
	for _, p := range catalog.Probes() {
		names = append(names, p.Name)
	}
	return strings.Join(names, ", ")
}

// defaultConfig is the configuration of a machine without a file.
func defaultConfig() *Config {
	c := &Config{values: map[string]any{}, labels: map[string]string{}}
	for _, s := range settings {
		c.values[s.key] = s.def
	}
	c.probes, _ = selectProbes(c.values["probes.enabled"].([]string))
	return c
}

// loadConfig reads a configuration file. The default file may be absent; one
// that was named must be there. The error names each mistake with its line.
func loadConfig(file string, named bool) (*Config, error) {
	text, err := bounded.ReadFile(file, maxConfigSize)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return defaultConfig(), nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the configuration: %w (nodeskoop config --default prints one to begin with)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	c, err := parseConfig(file, string(text))
	if err != nil {
		return nil, err
	}
	c.File = file
	return c, nil
}

// parseConfig reads the text of a configuration file called file.
func parseConfig(file, text string) (*Config, error) {
	if err := checkShape(file, text); err != nil {
		return nil, err
	}
	c := defaultConfig()
	l := &loader{file: file, c: c}
	var top map[string]toml.Primitive
	md, err := toml.Decode(text, &top)
	if err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			msg := strings.ReplaceAll(pe.Message, `'\x00'`, "the end of the file")
			if strings.HasSuffix(msg, "has already been defined.") {
				msg += " Each stands once in a file: put the keys of a section under the one that is there"
			}
			return nil, fmt.Errorf("%s:%d: %s", file, pe.Position.Line, msg)
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	l.md = &md
	l.table("", top)
	if len(l.errs) > 0 {
		slices.SortFunc(l.errs, func(a, b lineError) int { return cmp.Compare(a.line, b.line) })
		all := make([]error, len(l.errs))
		for i, e := range l.errs {
			all[i] = e
		}
		if l.more > 0 {
			all = append(all, fmt.Errorf("%s: %d more mistakes", file, l.more))
		}
		return nil, errors.Join(all...)
	}
	if c.probes, err = selectProbes(c.values["probes.enabled"].([]string)); err != nil {
		return nil, err
	}
	return c, nil
}

// loader walks the tables of one file.
type loader struct {
	file string
	md   *toml.MetaData
	c    *Config
	errs []lineError
	more int // mistakes that are not named
}

type lineError struct {
	file string
	line int
	key  string
	err  error
}

func (e lineError) Error() string { return fmt.Sprintf("%s:%d: %s: %v", e.file, e.line, e.key, e.err) }

// nowhere fails to decode anything, and so learns where the value stands.
type nowhere struct{}

func (*nowhere) UnmarshalTOML(any) error { return errors.New("") }

func (l *loader) fail(key string, p toml.Primitive, err error) {
	if len(l.errs) >= maxMistakes {
		l.more++
		return
	}
	if r := []rune(key); len(r) > 100 {
		key = string(r[:99]) + "…"
	}
	line := 0
	var pe toml.ParseError
	if errors.As(l.md.PrimitiveDecode(p, &nowhere{}), &pe) {
		line = pe.Position.Line
	}
	l.errs = append(l.errs, lineError{l.file, line, key, err})
}

func (l *loader) table(prefix string, values map[string]toml.Primitive) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		p, key := values[name], prefix+name
		switch s := settingFor(key); {
		case s != nil:
			l.value(s, p)
		case isTable(key):
			// Decoded into a map of its own, a number would be an empty table.
			var whole any
			var sub map[string]toml.Primitive
			err := errors.Join(l.md.PrimitiveDecode(p, &whole), l.md.PrimitiveDecode(p, &sub))
			if _, ok := whole.(map[string]any); err != nil || !ok {
				l.fail(key, p, errors.New("this is a table: write ["+key+"] on a line of its own"))
				continue
			}
			if key == "pods.labels" {
				l.userLabels(sub)
			} else {
				l.table(key+".", sub)
			}
		case obsolete(key) != "":
			l.c.obsolete = append(l.c.obsolete, fmt.Sprintf("%s: %s has no effect any more and can be deleted: %s", l.file, key, obsolete(key)))
		default:
			l.fail(key, p, errors.New("unknown key; "+allowed(prefix)))
		}
	}
}

func (l *loader) value(s *setting, p toml.Primitive) {
	v, err := decode(l.md, p, s.def)
	if err == nil && s.check != nil {
		err = s.check(v)
	}
	if err != nil {
		l.fail(s.key, p, err)
		return
	}
	l.c.values[s.key] = v
}

func (l *loader) userLabels(values map[string]toml.Primitive) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		p := values[name]
		v, err := decode(l.md, p, "")
		if err == nil {
			_, err = owner.ParseLabelTemplate(name, v.(string))
		}
		if err != nil {
			l.fail("pods.labels."+name, p, err)
			continue
		}
		l.c.labels[name] = v.(string)
	}
}

// decode reads a value of the type that def has.
func decode(md *toml.MetaData, p toml.Primitive, def any) (any, error) {
	switch def.(type) {
	case string:
		var v string
		if md.PrimitiveDecode(p, &v) != nil {
			return nil, errors.New("must be a string, in quotes")
		}
		return v, nil
	case bool:
		var v bool
		if md.PrimitiveDecode(p, &v) != nil {
			return nil, errors.New("must be true or false")
		}
		return v, nil
	case int64:
		var v int64
		if md.PrimitiveDecode(p, &v) != nil {
			return nil, errors.New("must be a whole number")
		}
		return v, nil
	case []string:
		var v []string
		if md.PrimitiveDecode(p, &v) != nil {
			return nil, errors.New("must be a list of strings, such as [\"a\", \"b\"]")
		}
		return v, nil
	case time.Duration:
		var s string
		if md.PrimitiveDecode(p, &s) != nil {
			return nil, errors.New("must be a duration in quotes, such as \"15s\"")
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			return nil, fmt.Errorf("%q is not a duration: write a number and a unit, such as \"15s\" or \"100ms\"", s)
		}
		return d, nil
	}
	panic(fmt.Sprintf("a setting of type %T", def))
}

func settingFor(key string) *setting {
	// Options of a probe may also be given under one of its aliases.
	if parts := strings.SplitN(key, ".", 3); len(parts) == 3 && parts[0] == "probes" {
		if p := catalog.ProbeByName(parts[1]); p != nil {
			key = "probes." + p.Name + "." + parts[2]
		}
	}
	for i := range settings {
		if settings[i].key == key {
			return &settings[i]
		}
	}
	return nil
}

// obsolete says why an option of a probe has no effect any more, if it once
// had one.
func obsolete(key string) string {
	parts := strings.SplitN(key, ".", 3)
	if len(parts) != 3 || parts[0] != "probes" {
		return ""
	}
	if p := catalog.ProbeByName(parts[1]); p != nil {
		for _, o := range p.Options {
			if o.Key == parts[2] {
				return o.Obsolete
			}
		}
	}
	return ""
}

func isTable(key string) bool {
	if key == "pods.labels" {
		return true
	}
	if name, ok := strings.CutPrefix(key, "probes."); ok && catalog.ProbeByName(name) != nil {
		return true
	}
	for _, s := range settings {
		if strings.HasPrefix(s.key, key+".") {
			return true
		}
	}
	return false
}

// allowed says what may stand in the table that prefix names.
func allowed(prefix string) string {
	seen := map[string]bool{}
	var names []string
	add := func(name string) {
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	if name, ok := strings.CutPrefix(prefix, "probes."); ok {
		if p := catalog.ProbeByName(strings.TrimSuffix(name, ".")); p != nil {
			prefix = "probes." + p.Name + "."
		}
	}
	for _, s := range settings {
		if rest, ok := strings.CutPrefix(s.key, prefix); ok {
			if table, _, sub := strings.Cut(rest, "."); sub {
				add("[" + prefix + table + "]")
			} else {
				add(rest)
			}
		}
	}
	if prefix == "pods." {
		add("[pods.labels]")
	}
	where := "here"
	if prefix != "" {
		where = "in [" + strings.TrimSuffix(prefix, ".") + "]"
	}
	if len(names) == 0 {
		return "no key is allowed " + where
	}
	return "allowed " + where + ": " + strings.Join(names, ", ")
}

func (c *Config) text(key string) string            { return c.values[key].(string) }
func (c *Config) flag(key string) bool              { return c.values[key].(bool) }
func (c *Config) number(key string) int             { return int(c.values[key].(int64)) }
func (c *Config) list(key string) []string          { return c.values[key].([]string) }
func (c *Config) duration(key string) time.Duration { return c.values[key].(time.Duration) }

// nodeName is the value of k8s_node.
func (c *Config) nodeName() string {
	host, _ := os.Hostname()
	return cmp.Or(c.text("node_name"), os.Getenv("NODE_NAME"), host)
}

// options are the Runner's.
func (c *Config) options() (collect.Options, error) {
	o := collect.Options{
		Node: c.nodeName(), HostLabel: c.text("pods.host_label"), Version: version,
		Interval: c.duration("interval"), Timeout: c.duration("timeout"),
		Enabled: c.probes, Probes: map[string]map[string]any{},
		CompatNames: c.flag("compat_names"), Exclude: c.list("metrics.exclude"),
		SkipZero: c.flag("metrics.skip_zero"), MaxSeries: c.number("textfile.max_series"),
	}
	for _, p := range catalog.Probes() {
		o.Probes[p.Name] = map[string]any{}
		for _, opt := range p.Options {
			if opt.Obsolete != "" {
				continue
			}
			o.Probes[p.Name][opt.Key] = c.values["probes."+p.Name+"."+opt.Key]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.labels)) {
		t, err := owner.ParseLabelTemplate(name, c.labels[name])
		if err != nil {
			return o, err
		}
		o.Labels = append(o.Labels, t)
	}
	return o, nil
}

// write prints the configuration as commented TOML. Where shipped is set each
// key is commented out, so that a later version's defaults apply.
func (c *Config) write(w io.Writer, shipped bool) error {
	var b strings.Builder
	b.WriteString("# Configuration of nodeskoop. `nodeskoop config` prints what is in effect,\n# `systemctl reload nodeskoop` applies a change.\n")
	mark := ""
	if shipped {
		b.WriteString("# Each key below stands at its default: remove the # in front of it to change it.\n")
		mark = "#"
	}
	table := ""
	for _, s := range settings {
		name := s.key
		if i := strings.LastIndexByte(s.key, '.'); i >= 0 {
			name = s.key[i+1:]
			if t := s.key[:i]; t != table {
				if table == "pods" {
					c.writeLabels(&b)
				}
				table = t
				fmt.Fprintf(&b, "\n[%s]\n", table)
			}
		}
		fmt.Fprintf(&b, "\n# %s\n# Default: %s\n%s%s = %s\n", s.help, literal(s.def), mark, name, literal(c.values[s.key]))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (c *Config) writeLabels(b *strings.Builder) {
	b.WriteString("\n[pods.labels]\n\n# Labels of your own on every series, from the labels of pods:\n#app = \"${labels:app}\"\n")
	for _, name := range slices.Sorted(maps.Keys(c.labels)) {
		fmt.Fprintf(b, "%s = %s\n", name, literal(c.labels[name]))
	}
}

// literal writes a value as TOML does.
func literal(v any) string {
	switch v := v.(type) {
	case string:
		return tomlString(v)
	case time.Duration:
		return tomlString(shortDuration(v))
	case []string:
		q := make([]string, len(v))
		for i, s := range v {
			q[i] = tomlString(s)
		}
		return "[" + strings.Join(q, ", ") + "]"
	}
	return fmt.Sprint(v)
}

// tomlString quotes s as a basic string of TOML.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// shortDuration writes 1m0s as 1m and 1h0m0s as 1h.
func shortDuration(d time.Duration) string {
	s := d.String()
	if t, ok := strings.CutSuffix(s, "m0s"); ok {
		s = t + "m"
	}
	if t, ok := strings.CutSuffix(s, "h0m"); ok {
		s = t + "h"
	}
	return s
}
