package config

import (
	"fmt"
	"io"
	"strings"
	"time"

	"nodeskoop/internal/quote"
)

// Write prints the configuration as commented TOML. With shipped set every key is
// commented out, so that the defaults of later versions apply.
func (c *Config) Write(w io.Writer, shipped bool) error {
	var b strings.Builder
	b.WriteString("# Configuration of nodeskoop. `nodeskoop config` prints the effective configuration,\n# `systemctl reload nodeskoop` applies a change.\n")
	if shipped {
		b.WriteString("# Your own files in nodeskoop.d beside this file (NAME.toml) are read after it, in\n# the order of their names, and override it.\n")
	}
	mark := ""
	if shipped {
		b.WriteString("# Each key below stands at its default: remove the # in front of it to change it.\n")
		mark = "#"
	}
	table := ""
	for _, s := range settings {
		if t := s.table(); t != table {
			if table == "pods" {
				c.writeLabels(&b)
			}
			table = t
			fmt.Fprintf(&b, "\n[%s]\n", table)
		}
		fmt.Fprintf(&b, "\n# %s\n# Default: %s\n", s.Help, Literal(s.Default))
		c.writeOrigin(&b, s.Key)
		fmt.Fprintf(&b, "%s%s = %s\n", mark, s.name(), Literal(s.value(c)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeOrigin writes where a key is set. A file name may contain any character;
// newlines are escaped.
func (c *Config) writeOrigin(b *strings.Builder, key string) {
	if from, ok := c.Origins[key]; ok {
		b.WriteString("# Set by " + quote.SafeLine(from) + "\n")
	}
}

func (c *Config) writeLabels(b *strings.Builder) {
	b.WriteString("\n[pods.labels]\n\n# Labels of your own on every series, from the labels of pods:\n#app = \"${labels:app}\"\n")
	for _, l := range c.Pods.Labels {
		c.writeOrigin(b, "pods.labels."+l.Template.Name)
		fmt.Fprintf(b, "%s = %s\n", l.Template.Name, Literal(l.Text))
	}
}

// Literal formats a value as TOML.
func Literal(v any) string {
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

// tomlString quotes s as a basic TOML string.
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

// shortDuration formats 1m0s as 1m and 1h0m0s as 1h.
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
