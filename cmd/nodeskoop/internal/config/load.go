package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
)

// source is a configuration file and its text.
type source struct{ file, text string }

// Folder returns the drop-in folder of a configuration file: nodeskoop.d beside
// nodeskoop.toml.
func Folder(file string) string { return strings.TrimSuffix(file, ".toml") + ".d" }

// maxConfigFiles is the maximum number of drop-in files.
const maxConfigFiles = 100

// Load reads a configuration file, then the files in its Folder that end in .toml,
// in the order of names. If several set a key, the last value wins. The default
// file may be absent; a file named by the user must exist. The error lists each
// mistake with file and line.
func Load(file string, named bool) (*Config, error) {
	var sources []source
	text, err := bounded.ReadFile(file, maxConfigSize)
	switch {
	case err == nil:
		sources = append(sources, source{file, string(text)})
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read the configuration: %w", err)
	case named:
		return nil, fmt.Errorf("read the configuration: %w (nodeskoop config --default prints one to begin with)", err)
	}
	names, err := filesIn(Folder(file))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	for _, name := range names {
		text, err := bounded.ReadFile(name, maxConfigSize)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed in the meantime
		}
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		sources = append(sources, source{name, string(text)})
	}
	c, err := parse(sources)
	if err != nil {
		return nil, err
	}
	c.File = file
	return c, nil
}

// listWait is how long a file system may take to list a folder.
const listWait = 5 * time.Second

// filesIn returns the files of a folder that end in .toml, sorted. It skips hidden
// files, which belong to editors or are incomplete. An absent folder has no files.
func filesIn(folder string) ([]string, error) {
	entries, err := bounded.Within(listWait, func() ([]fs.DirEntry, error) { return os.ReadDir(folder) })
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if errors.Is(err, bounded.ErrNoAnswer) {
		return nil, fmt.Errorf("list %s: %w", folder, err)
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries { // sorted by name
		if name := e.Name(); strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".") {
			names = append(names, filepath.Join(folder, name))
		}
	}
	if len(names) > maxConfigFiles {
		return nil, fmt.Errorf("%s has %d files that end in .toml: %d are the most", folder, len(names), maxConfigFiles)
	}
	return names, nil
}

// Parse parses the text of a configuration file; file is its name in errors.
func Parse(file, text string) (*Config, error) { return parse([]source{{file, text}}) }

// parse parses the files in order; later files override earlier ones.
func parse(sources []source) (*Config, error) {
	c := Default()
	var mistakes []error
	for _, s := range sources {
		c.Files = append(c.Files, s.file)
		if err := c.read(s.file, s.text); err != nil {
			mistakes = append(mistakes, err)
		}
	}
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	return c, c.Select(c.Selection)
}

// read applies one file to the configuration.
func (c *Config) read(file, text string) error {
	if err := checkShape(file, text); err != nil {
		return err
	}
	l := &loader{file: file, c: c, seen: map[string]int{}}
	var top map[string]toml.Primitive
	md, err := toml.Decode(text, &top)
	if err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			msg := strings.ReplaceAll(pe.Message, `'\x00'`, "the end of the file")
			if strings.HasSuffix(msg, "has already been defined.") {
				msg += " Each stands once in a file: put the keys of a section under the one that is there"
			}
			return fmt.Errorf("%s:%d: %s", file, pe.Position.Line, msg)
		}
		return fmt.Errorf("%s: %w", file, err)
	}
	l.md = &md
	l.table("", top)
	if len(l.errs) == 0 {
		return nil
	}
	slices.SortFunc(l.errs, func(a, b lineError) int { return cmp.Compare(a.line, b.line) })
	all := make([]error, len(l.errs))
	for i, e := range l.errs {
		all[i] = e
	}
	if l.more > 0 {
		all = append(all, fmt.Errorf("%s: %d more mistakes", file, l.more))
	}
	return errors.Join(all...)
}

// loader walks the tables of one file.
type loader struct {
	file string
	md   *toml.MetaData
	c    *Config
	seen map[string]int // lines of the keys that this file sets
	errs []lineError
	more int // mistakes beyond those listed
}

type lineError struct {
	file string
	line int
	key  string
	err  error
}

func (e lineError) Error() string { return fmt.Sprintf("%s:%d: %s: %v", e.file, e.line, e.key, e.err) }

// nowhere is a decoding target that always fails, which reveals the line of a
// value.
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
	l.errs = append(l.errs, lineError{l.file, l.line(p), key, err})
}

// line returns the line number of a value. A table that only its keys create, as a.b = 1
// creates a, has none in the library; it begins at the first of them.
func (l *loader) line(p toml.Primitive) int {
	var pe toml.ParseError
	if errors.As(l.md.PrimitiveDecode(p, &nowhere{}), &pe) && pe.Position.Line > 0 {
		return pe.Position.Line
	}
	first := 0
	var keys map[string]toml.Primitive
	if l.md.PrimitiveDecode(p, &keys) != nil {
		return 0
	}
	for _, key := range keys { // checkShape limits the depth
		if n := l.line(key); n > 0 && (first == 0 || n < first) {
			first = n
		}
	}
	return first
}

// origin records where a key is set.
func (l *loader) origin(key string, p toml.Primitive) {
	l.c.Origins[key] = fmt.Sprintf("%s:%d", l.file, l.line(p))
}

func (l *loader) table(prefix string, values map[string]toml.Primitive) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		p, key := values[name], prefix+name
		switch s := settingFor(key); {
		case strings.Contains(name, "."):
			// In quotes it is one name. It is no other spelling of a key, which could then
			// stand twice in a file.
			l.fail(strconv.Quote(key), p, errors.New("unknown key; "+allowed(prefix)))
		case s != nil && l.seen[s.Key] > 0:
			l.fail(key, p, fmt.Errorf("line %d sets it too, under another name of the probe: each key stands once in a file", l.seen[s.Key]))
		case s != nil:
			l.seen[s.Key] = l.line(p)
			if err := s.read(l.c, func(v any) error { return decode(l.md, p, v) }); err != nil {
				l.fail(s.Key, p, err)
			} else {
				l.origin(s.Key, p)
			}
		case isTable(key):
			// Decoded into a separate map, a number would become an empty table.
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
		l.origin("pods.labels."+name, p)
		all := l.c.Pods.Labels
		i, has := slices.BinarySearchFunc(all, name, func(l Label, name string) int { return cmp.Compare(l.Template.Name, name) })
		if has { // a file read earlier has set the key
			all[i] = label
		} else {
			l.c.Pods.Labels = slices.Insert(all, i, label)
		}
	}
}

// decode decodes a TOML value into the variable that v points to.
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
	// Probe options may also be given under an alias of the probe.
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

// obsolete returns why a probe option no longer has an effect, "" if it was never
// an option.
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

// allowed lists the valid keys of the table named by prefix.
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
