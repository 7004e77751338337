package docs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
)

// TestGuides: each page of the folder that is written by hand is a guide, begins
// with its title, and is whole.
func TestGuides(t *testing.T) {
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	guides := map[string]Guide{}
	for _, g := range Guides() {
		guides[g.Name] = g
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if unicode.IsUpper(rune(f[0])) {
			if !strings.Contains(string(text), "Made from the catalogue") {
				t.Errorf("%s is in capitals, which stand for a generated page, and does not say that it is one", f)
			}
			continue
		}
		name := strings.TrimSuffix(f, ".md")
		g, ok := guides[name]
		delete(guides, name)
		switch {
		case !ok:
			t.Errorf("%s is no guide", f)
		case g.Text != string(text):
			t.Errorf("%s: the guide is not the file's text", f)
		case g.Title == "" || !strings.HasPrefix(g.Text, "# "+g.Title+"\n"):
			t.Errorf("%s: the title is %q; the page must begin with a heading", f, g.Title)
		}
	}
	for name := range guides {
		t.Errorf("the guide %s has no file", name)
	}
	if len(files) < 6 {
		t.Errorf("%d pages", len(files))
	}
}
