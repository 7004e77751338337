package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
)

// Load reads a configuration file. The default file may be absent; one
// that was named must be there. The error names each mistake with its line.
func Load(file string, named bool) (*Config, error) {
	text, err := bounded.ReadFile(file, maxConfigSize)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return Default(), nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the configuration: %w (nodeskoop config --default prints one to begin with)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	c, err := Parse(file, string(text))
	if err != nil {
		return nil, err
	}
	c.File = file
	return c, nil
}

// Parse reads the text of a configuration file called file.
func Parse(file, text string) (*Config, error) {
	if err := checkShape(file, text); err != nil {
		return nil, err
	}
	c := Default()
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
	return c, c.Select(c.Selection)
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
			if err := s.read(l.c, func(v any) error { return decode(l.md, p, v) }); err != nil {
				l.fail(s.Key, p, err)
			}
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
			l.c.Obsolete = append(l.c.Obsolete, fmt.Sprintf("%s: %s has no effect any more and can be deleted: %s", l.file, key, obsolete(key)))
		default:
			l.fail(key, p, errors.New("unknown key; "+allowed(prefix)))
		}
	}
}

func (l *loader) userLabels(values map[string]toml.Primitive) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		p := values[name]
		var label Label
		err := decode(l.md, p, &label.Text)
		if err == nil {
			label.Template, err = owner.ParseLabelTemplate(name, label.Text)
		}
		if err != nil {
			l.fail("pods.labels."+name, p, err)
			continue
		}
		l.c.Pods.Labels = append(l.c.Pods.Labels, label)
	}
}

// decode reads a value into what v points to.
func decode(md *toml.MetaData, p toml.Primitive, v any) error {
	d, isDuration := v.(*time.Duration)
	var text string
	if isDuration {
		v = &text
	}
	if err := md.PrimitiveDecode(p, v); err != nil {
		switch v.(type) {
		case *bool:
			return errors.New("must be true or false")
		case *int64:
			return errors.New("must be a whole number")
		case *[]string:
			return errors.New("must be a list of strings, such as [\"a\", \"b\"]")
		}
		if isDuration {
			return errors.New("must be a duration in quotes, such as \"15s\"")
		}
		return errors.New("must be a string, in quotes")
	}
	if !isDuration {
		return nil
	}
	var err error
	if *d, err = time.ParseDuration(text); err != nil {
		return fmt.Errorf("%q is not a duration: write a number and a unit, such as \"15s\" or \"100ms\"", text)
	}
	return nil
}

func settingFor(key string) *Setting {
	// Options of a probe may also be given under one of its aliases.
	if parts := strings.SplitN(key, ".", 3); len(parts) == 3 && parts[0] == "probes" {
		if p := catalog.ProbeByName(parts[1]); p != nil {
			key = "probes." + p.Name + "." + parts[2]
		}
	}
	for i := range settings {
		if settings[i].Key == key {
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
		if strings.HasPrefix(s.Key, key+".") {
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
		if rest, ok := strings.CutPrefix(s.Key, prefix); ok {
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
