package docs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	guides "nodeskoop/docs"
)

// TestGuides: each hand-written page of docs/ is an embedded guide that begins with
// its title.
func TestGuides(t *testing.T) {
	files, err := filepath.Glob("../../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]guides.Guide{}
	for _, g := range guides.Guides() {
		left[g.Name] = g
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if unicode.IsUpper(rune(filepath.Base(f)[0])) {
			if !strings.Contains(string(text), "Made from the catalogue") {
				t.Errorf("%s is in capitals, which stand for a generated page, and does not say that it is one", f)
			}
			continue
		}
		name := strings.TrimSuffix(filepath.Base(f), ".md")
		g, ok := left[name]
		delete(left, name)
		switch {
		case !ok:
			t.Errorf("%s is no guide", f)
		case g.Text != string(text):
			t.Errorf("%s: the guide is not the file's text", f)
		case g.Title == "" || !strings.HasPrefix(g.Text, "# "+g.Title+"\n"):
			t.Errorf("%s: the title is %q; the page must begin with a heading", f, g.Title)
		}
	}
	for name := range left {
		t.Errorf("the guide %s has no file", name)
	}
	if len(files) < 6 {
		t.Errorf("%d pages", len(files))
	}
}
