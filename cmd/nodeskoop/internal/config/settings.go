package config

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
)

// Setting is one key of the configuration file.
type Setting struct {
	Key     string // full key, with tables joined by dots
	Default any
	Help    string

	probe *catalog.Probe // owner of the option, nil for other keys
	value func(*Config) any
	// read decodes a value into the configuration.
	read func(c *Config, decode func(any) error) error
}

// table and name return the two parts of the key.
func (s *Setting) table() string { return s.Key[:max(0, strings.LastIndexByte(s.Key, '.'))] }
func (s *Setting) name() string  { return s.Key[strings.LastIndexByte(s.Key, '.')+1:] }

// field declares the setting of a configuration field. Its default comes from
// Default.
func field[T any](key, help string, at func(*Config) *T, check func(T) error) Setting {
	return Setting{
		Key: key, Default: *at(Default()), Help: help,
		value: func(c *Config) any { return *at(c) },
		read: func(c *Config, decode func(any) error) error {
			var v T
			if err := decode(&v); err != nil {
				return err
			}
			if check != nil {
				if err := check(v); err != nil {
					return err
				}
			}
			*at(c) = v
			return nil
		},
	}
}

// option declares the setting of a probe option.
func option(p *catalog.Probe, o *catalog.Option) Setting {
	key, help := "probes."+p.Name+"."+o.Key, upperFirst(o.Help)+"."
	var s Setting
	switch o.Default.(type) {
	case bool:
		s = field(key, help, optionAt[bool](o), nil)
	case int64:
		s = field(key, help, optionAt[int64](o), intIn(1, 1_000_000))
	case string:
		s = field(key, help, optionAt[string](o), oneOf(o.OneOf))
	case []string:
		s = field(key, help, optionAt[[]string](o), globs)
	case time.Duration:
		s = field(key, help, optionAt[time.Duration](o), durationIn(time.Microsecond, time.Hour))
	default:
		panic(fmt.Sprintf("%s is of type %T", key, o.Default))
	}
	s.probe = p
	return s
}

// escalated lists the default of probes.escalate.
func escalated() string {
	names, _ := selectEscalated([]string{"default"})
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// oneOf allows some strings, or any if there are none.
func oneOf(allowed []string) func(string) error {
	if allowed == nil {
		return nil
	}
	return func(s string) error {
		if !slices.Contains(allowed, s) {
			return fmt.Errorf("%q is not allowed: it is one of \"%s\"", s, strings.Join(allowed, "\", \""))
		}
		return nil
	}
}

// optionAt is where a configuration has the value of an option.
func optionAt[T any](o *catalog.Option) func(*Config) *T {
	return func(c *Config) *T { return c.options[o].(*T) }
}

// settings are all keys except those of [pods.labels], in the file's order.
var settings = declareSettings()

// Settings returns all keys of the configuration file except those of
// [pods.labels], in the file's order. The caller must not modify the slice.
func Settings() []Setting { return settings }

func declareSettings() []Setting {
	s := []Setting{
		field("node_name", "The value of the label k8s_node. Empty: $NODE_NAME, else the host's name.",
			func(c *Config) *string { return &c.NodeName }, nil),
		field("interval", "Time between two samples.",
			func(c *Config) *time.Duration { return &c.Interval }, durationIn(time.Second, time.Hour)),
		field("timeout", "Time limit for one probe on one pod or namespace; the probe's values for it are then missing.",
			func(c *Config) *time.Duration { return &c.Timeout }, durationIn(10*time.Millisecond, time.Minute)),
		field("compat_names", "Also write the metric names that KubeSkoop's dashboards use (kubeskoop_fd_openfd, kubeskoop_io_readbytes, ...).",
			func(c *Config) *bool { return &c.CompatNames }, nil),
		field("host_netns", "Path of the host's network namespace. Empty: that of process 1, which is the host's unless this is a container with its own PID namespace.",
			func(c *Config) *string { return &c.HostNetns }, printable),

		field("probes.enabled", "Probes to run: names, \"default\", \"all\", and \"-NAME\" to leave one out.",
			func(c *Config) *[]string { return &c.Selection }, func(names []string) error {
				_, err := SelectProbes(names)
				return err
			}),
		field("probes.escalate", "Probes to run for five minutes, at most twice an hour, when the enabled ones see a sign of a fault: as in probes.enabled, but \"default\" means "+escalated()+". An enabled probe always runs. []: none.",
			func(c *Config) *[]string { return &c.Escalation }, func(names []string) error {
				_, err := selectEscalated(names)
				return err
			}),
	}
	for _, p := range catalog.Probes() {
		for i := range p.Options {
			if o := &p.Options[i]; o.Obsolete == "" {
				s = append(s, option(p, o))
			}
		}
	}
	return append(s,
		field("textfile.dir", "The folder that node_exporter reads (its flag --collector.textfile.directory).",
			func(c *Config) *string { return &c.Textfile.Dir }, both(notEmpty, printable)),
		field("textfile.file", "The file's name; it must end in .prom.",
			func(c *Config) *string { return &c.Textfile.File }, func(s string) error {
				if !strings.HasSuffix(s, ".prom") || s == ".prom" || strings.Contains(s, "/") {
					return errors.New("must be a file name that ends in .prom, without a folder: node_exporter reads no other")
				}
				if len(s) > unix.NAME_MAX {
					return fmt.Errorf("has %d bytes: a file name has at most %d", len(s), unix.NAME_MAX)
				}
				return printable(s)
			}),
		field("textfile.mode", "The file's permissions, octal. node_exporter must be able to read it.",
			func(c *Config) *string { return &c.Textfile.Mode }, func(s string) error {
				_, err := parseMode(s)
				return err
			}),
		field("textfile.keep", "Leave the file in place on a clean stop. node_exporter then keeps serving its last values.",
			func(c *Config) *bool { return &c.Textfile.Keep }, nil),
		field("textfile.max_series", "Maximum number of series in the file; nodeskoop_series_left_out counts those left out. 0: no limit.",
			func(c *Config) *int64 { return &c.Textfile.MaxSeries }, intIn(0, 10_000_000)),

		field("state.dir", "The folder of saved counters and of the history. Empty: $STATE_DIRECTORY, which systemd sets, else "+DefaultStateDir+".",
			func(c *Config) *string { return &c.State.Dir }, func(d string) error {
				if d == "" {
					return nil
				}
				return absolute(d)
			}),
		field("state.counters", "Save the counts of deleted interfaces, exited processes and BPF programs, so that no counter falls when the daemon restarts, or between two samples of `nodeskoop collect`.",
			func(c *Config) *bool { return &c.State.Counters }, nil),

		field("history.enabled", "Record on the node, per minute, which counters changed, in the subfolder history of state.dir. Turning it off deletes nothing.",
			func(c *Config) *bool { return &c.History.Enabled }, nil),
		field("history.max", "Maximum size of the history; the oldest hours are deleted first.",
			func(c *Config) *string { return &c.History.Max }, func(s string) error {
				_, err := parseSize(s)
				return err
			}),
		field("history.max_age", "Maximum age of the history, in days (14d) or as a duration (36h).",
			func(c *Config) *string { return &c.History.MaxAge }, func(s string) error {
				_, err := parseAge(s)
				return err
			}),

		field("metrics.include", "Names of the probes' metrics to write; * and ? match as in a shell. Empty: all. Metrics of nodeskoop about itself are always written.",
			func(c *Config) *[]string { return &c.Metrics.Include }, globs),
		field("metrics.exclude", "Names of metrics to leave out, even if metrics.include matches them; * and ? match as in a shell.",
			func(c *Config) *[]string { return &c.Metrics.Exclude }, globs),
		field("metrics.skip_zero", "Leave out counters of a pod that have been 0 since the start.",
			func(c *Config) *bool { return &c.Metrics.SkipZero }, nil),

		field("journal.rate", "Journal entries per second for one event type and pod. Events of one kind are merged into one entry with their number.",
			func(c *Config) *int64 { return &c.Journal.Rate }, intIn(1, 100_000)),
		field("journal.burst", "Largest burst of journal entries for one event type and pod.",
			func(c *Config) *int64 { return &c.Journal.Burst }, intIn(1, 100_000)),
		field("journal.total_rate", "Journal entries per second over all event types and pods. It restricts only types and pods that exceed the limits above.",
			func(c *Config) *int64 { return &c.Journal.TotalRate }, intIn(1, 100_000)),

		field("pods.sockets", "Sockets of containerd to try, in this order. Empty: the usual ones, including those of k3s, rke2, k0s and microk8s, and that of a containerd started by Docker.",
			func(c *Config) *[]string { return &c.Pods.Sockets }, func(sockets []string) error {
				for _, s := range sockets {
					if err := absolute(s); err != nil {
						return err
					}
				}
				return nil
			}),
		field("pods.namespace", "Namespaces of containerd to follow, separated by commas; \"*\": all. Kubernetes' pods are in k8s.io, containers of Docker in moby.",
			func(c *Config) *string { return &c.Pods.Namespace }, notEmpty),
		field("pods.host_label", "The value of k8s_namespace and k8s_pod for the host's own series; \"\" suits KubeSkoop's dashboards.",
			func(c *Config) *string { return &c.Pods.HostLabel }, nil),

		field("log.level", "debug, info, warn or error.",
			func(c *Config) *string { return &c.Log.Level }, func(s string) error {
				_, err := ParseLevel(s)
				return err
			}),
		field("log.format", "text or json.",
			func(c *Config) *string { return &c.Log.Format }, func(s string) error {
				if s != "text" && s != "json" {
					return fmt.Errorf("%q is not a format: use text or json", s)
				}
				return nil
			}),
	)
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// globs validates patterns for path.Match.
func globs(patterns []string) error {
	for _, g := range patterns {
		if _, err := path.Match(g, ""); err != nil {
			return fmt.Errorf("%q is not a pattern: %w", g, err)
		}
	}
	return nil
}

func durationIn(lo, hi time.Duration) func(time.Duration) error {
	return func(d time.Duration) error {
		if d < lo || d > hi {
			return fmt.Errorf("%v is out of range: use %v to %v", d, lo, hi)
		}
		return nil
	}
}

func intIn(lo, hi int64) func(int64) error {
	return func(n int64) error {
		if n < lo || n > hi {
			return fmt.Errorf("%d is out of range: use %d to %d", n, lo, hi)
		}
		return nil
	}
}

func notEmpty(s string) error {
	if s == "" {
		return errors.New("must not be empty")
	}
	return nil
}

// both applies two checks.
func both(a, b func(string) error) func(string) error {
	return func(s string) error {
		if err := a(s); err != nil {
			return err
		}
		return b(s)
	}
}

// printable rejects control characters. No path has them on purpose, the kernel takes no
// NUL, and a line of a log or of check's output must not end within a path.
func printable(s string) error {
	if i := strings.IndexFunc(s, unicode.IsControl); i >= 0 {
		return fmt.Errorf("%q has a control character", s)
	}
	return nil
}

func absolute(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q is not an absolute path", path)
	}
	return printable(path)
}
