// Package config reads, validates and prints the configuration file.
package config

import (
	"cmp"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/when"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/output/history"
)

// DefaultFile is the configuration file if the command line names none; it may be
// absent.
const DefaultFile = "/etc/nodeskoop/nodeskoop.toml"

// DefaultStateDir is the state folder if systemd does not set $STATE_DIRECTORY
// (StateDirectory=).
const DefaultStateDir = "/var/lib/nodeskoop"

// Config is the effective configuration.
type Config struct {
	File     string            // file read first, whether or not it exists
	Files    []string          // files read, in order; empty if none
	Origins  map[string]string // by key, the source of its value: FILE:LINE, or a flag
	Obsolete []string          // warnings about obsolete options in the files

	NodeName          string
	Interval, Timeout time.Duration
	CompatNames       bool
	HostNetns         string
	Selection         []string // probes.enabled as written
	Probes            []string // enabled probes by name, sorted
	Named             []string // the enabled probes that the user named, not by "default" or "all"
	Escalation        []string // probes.escalate as written
	Escalate          []string // probes that run after a sign of a fault, by name, sorted; none of them is enabled
	Textfile          Textfile
	State             State
	History           History
	Metrics           Metrics
	Journal           Journal
	Pods              Pods
	Log               Log

	// options holds the values of probe options, each a pointer to the type of the
	// option's default in the catalogue.
	options map[*catalog.Option]any
}

// Textfile is the section [textfile].
type Textfile struct {
	Dir, File string
	Mode      string // octal
	Keep      bool
	MaxSeries int64
}

// State is the section [state].
type State struct {
	Dir      string
	Counters bool
}

// History is the section [history].
type History struct {
	Enabled bool
	Max     string // size with unit
	MaxAge  string // age with unit
}

// Metrics is the section [metrics].
type Metrics struct {
	Include  []string
	Exclude  []string
	SkipZero bool
}

// Journal is the section [journal].
type Journal struct{ Rate, Burst, TotalRate int64 }

// Pods is the section [pods].
type Pods struct {
	Sockets   []string
	Namespace string
	HostLabel string
	Labels    []Label // [pods.labels], sorted by name
}

// Label is a user-defined label.
type Label struct {
	Text     string // text of the template
	Template owner.LabelTemplate
}

// Log is the section [log].
type Log struct{ Level, Format string }

// Default returns the configuration of a machine without a file.
func Default() *Config {
	c := &Config{
		Interval: 15 * time.Second, Timeout: 2 * time.Second, CompatNames: true,
		Selection: []string{"default"}, Escalation: []string{"default"},
		Textfile: Textfile{Dir: "/var/lib/prometheus/node-exporter", File: "nodeskoop.prom", Mode: "0644", MaxSeries: 50000},
		State:    State{Counters: true},
		History:  History{Enabled: true, Max: "64 MB", MaxAge: "14d"},
		Metrics:  Metrics{Include: []string{}, Exclude: []string{}},
		Journal:  Journal{Rate: event.DefaultEventRate, Burst: event.DefaultEventBurst, TotalRate: event.DefaultTotalRate},
		Pods:     Pods{Sockets: []string{}, Namespace: "*", HostLabel: owner.DefaultHostLabel},
		Log:      Log{Level: "info", Format: "text"},
		Origins:  map[string]string{},
		options:  map[*catalog.Option]any{},
	}
	_ = c.Select(c.Selection)
	for _, p := range catalog.Probes() {
		for i := range p.Options {
			o := &p.Options[i]
			v := reflect.New(reflect.TypeOf(o.Default))
			v.Elem().Set(reflect.ValueOf(o.Default))
			c.options[o] = v.Interface()
		}
	}
	return c
}

// SelectProbes resolves a selection (names, aliases, "default", "all", "-NAME") to
// sorted probe names. A selection of exclusions alone starts from the default.
func SelectProbes(selection []string) ([]string, error) {
	return selectProbes(selection, func(p *catalog.Probe) bool { return p.Default })
}

// selectEscalated is SelectProbes for probes.escalate, which has a default of its own.
func selectEscalated(selection []string) ([]string, error) {
	return selectProbes(selection, func(p *catalog.Probe) bool { return p.Escalate })
}

func selectProbes(selection []string, isDefault func(*catalog.Probe) bool) ([]string, error) {
	chosen := map[string]bool{}
	set := func(on bool, match func(*catalog.Probe) bool) {
		for _, p := range catalog.Probes() {
			if match(p) {
				chosen[p.Name] = on
			}
		}
	}
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

// Select sets the enabled probes, and those that run after a sign of a fault.
func (c *Config) Select(selection []string) (err error) {
	if c.Probes, err = SelectProbes(selection); err != nil {
		return err
	}
	if c.Escalate, err = selectEscalated(c.Escalation); err != nil {
		return err
	}
	c.Escalate = slices.DeleteFunc(c.Escalate, func(name string) bool { return slices.Contains(c.Probes, name) })
	c.Named = slices.DeleteFunc(slices.Clone(c.Probes), func(name string) bool {
		return !slices.ContainsFunc(selection, func(s string) bool {
			p := catalog.ProbeByName(s)
			return p != nil && p.Name == name
		})
	})
	return nil
}

func probeNames() string {
	var names []string
	for _, p := range catalog.Probes() {
		names = append(names, p.Name)
	}
	return strings.Join(names, ", ")
}

// Node returns the value of k8s_node.
func (c *Config) Node() string {
	host, _ := os.Hostname()
	return cmp.Or(c.NodeName, os.Getenv("NODE_NAME"), host)
}

// StateDir returns the state folder.
func (c *Config) StateDir() string {
	given, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	return cmp.Or(c.State.Dir, given, DefaultStateDir)
}

// HistoryDir returns the folder of the history.
func (c *Config) HistoryDir() string { return filepath.Join(c.StateDir(), history.Folder) }

// Limits returns the maximum size of the history in bytes, and its maximum age.
func (h History) Limits() (bytes int64, age time.Duration) {
	bytes, _ = parseSize(h.Max) // validated when read
	age, _ = parseAge(h.MaxAge)
	return bytes, age
}

// units are the units of sizes.
var units = []struct {
	name  string
	bytes int64
}{{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}}

// Limits of the history's options. One file holds at most an eighth of the size,
// and an hour.
const (
	minHistory, maxHistory       = 1_000_000, 100_000_000_000
	minHistoryAge, maxHistoryAge = time.Hour, 10 * 365 * 24 * time.Hour
)

// parseSize parses a size such as "64 MB".
func parseSize(s string) (int64, error) {
	for _, u := range units {
		text, ok := strings.CutSuffix(strings.ToUpper(s), strings.ToUpper(u.name))
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 32)
		if !ok || err != nil {
			continue
		}
		if n < 0 || n > maxHistory/u.bytes || n*u.bytes < minHistory {
			return 0, fmt.Errorf("%q is out of range: use \"1 MB\" to \"100 GB\"", s)
		}
		return n * u.bytes, nil
	}
	return 0, fmt.Errorf("%q is not a size: write a whole number and a unit (KB, MB, GB, KiB, MiB, GiB), such as \"64 MB\"", s)
}

// parseAge parses an age: a duration, or days such as "14d".
func parseAge(s string) (time.Duration, error) {
	age, ok := when.Length(s)
	switch {
	case !ok:
		return 0, fmt.Errorf("%q is not an age: write a number and a unit, such as \"14d\" or \"36h\"", s)
	case age < minHistoryAge || age > maxHistoryAge:
		return 0, fmt.Errorf("%q is out of range: use \"1h\" to \"3650d\"", s)
	}
	return age, nil
}

// Perm returns the textfile's mode.
func (t Textfile) Perm() fs.FileMode {
	m, _ := parseMode(t.Mode) // validated when read
	return m
}

func parseMode(s string) (fs.FileMode, error) {
	m, err := strconv.ParseUint(s, 8, 32)
	if err != nil || m > 0o777 || m&0o400 == 0 {
		return 0, fmt.Errorf("%q is not a file mode: use octal digits, such as \"0644\"", s)
	}
	return fs.FileMode(m), nil
}

// ParseLevel parses the name of a log level.
func ParseLevel(name string) (slog.Level, error) {
	var l slog.Level
	// slog also accepts numbers, such as INFO+3.
	if err := l.UnmarshalText([]byte(name)); err != nil || strings.ContainsAny(name, "+-") {
		return l, fmt.Errorf("%q is not a level: use debug, info, warn or error", name)
	}
	return l, nil
}

// Templates returns the templates of the user's labels.
func (p Pods) Templates() []owner.LabelTemplate {
	var t []owner.LabelTemplate
	for _, l := range p.Labels {
		t = append(t, l.Template)
	}
	return t
}

// Options returns the configuration's part of a Runner's options.
func (c *Config) Options() collect.Options {
	o := collect.Options{
		Node: c.Node(), HostLabel: c.Pods.HostLabel,
		Interval: c.Interval, Timeout: c.Timeout,
		Enabled: c.Probes, Probes: map[string]map[string]any{},
		CompatNames: c.CompatNames, Include: c.Metrics.Include, Exclude: c.Metrics.Exclude,
		SkipZero: c.Metrics.SkipZero, MaxSeries: int(c.Textfile.MaxSeries),
		Labels: c.Pods.Templates(),
	}
	for _, p := range catalog.Probes() {
		o.Probes[p.Name] = map[string]any{}
	}
	for _, s := range settings {
		if s.probe != nil {
			o.Probes[s.probe.Name][s.name()] = s.value(c)
		}
	}
	return o
}

// FlowDevices reports whether the probe flow counts at devices.
func (c *Config) FlowDevices() bool {
	devices, _ := settingFor("probes.flow.devices").value(c).([]string)
	return len(devices) > 0
}
