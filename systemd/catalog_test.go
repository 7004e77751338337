package systemd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit/need"
)

func TestCatalogIsFresh(t *testing.T) {
	var want bytes.Buffer
	if err := WriteCatalog(&want); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("nodeskoop.catalog")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("nodeskoop.catalog is not what the Catalogue says: make generate")
	}
}

// An entry that journalctl cannot read makes it reject the catalogs of all packages, so ask
// journalctl.
func TestCatalogIsCompiled(t *testing.T) {
	need.Program(t, "journalctl")
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/systemd/catalog")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteCatalog(&b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nodeskoop.catalog"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("journalctl", "--root="+root, "--update-catalog").CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("journalctl --update-catalog: %v\n%s", err, out)
	}
	for _, e := range catalog.Events() {
		out, err := exec.Command("journalctl", "--root="+root, "--dump-catalog", e.MessageID).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", e.Name, err, out)
			continue
		}
		text := string(out)
		for _, want := range append(strings.Fields(e.Explain), "Subject: "+e.Summary, "Defined-By: nodeskoop") {
			if !strings.Contains(text, want) {
				t.Errorf("%s: its entry lacks %q", e.Name, want)
			}
		}
		for _, s := range e.Next {
			if !strings.Contains(text, "\n  "+s.Command+"\n") {
				t.Errorf("%s: its entry lacks the command %q on a line of its own", e.Name, s.Command)
			}
		}
	}
	// journalctl replaces @FIELD@ by the field's value, which may be an attacker's.
	if fields := regexp.MustCompile(`@\S*@`).FindAllString(b.String(), -1); len(fields) > 0 {
		t.Errorf("%v would be replaced by what an entry holds", fields)
	}
	for _, l := range strings.Split(b.String(), "\n") {
		if len(l) > catalogWidth+24 {
			t.Errorf("a line of %d columns: %s", len(l), l)
		}
	}
}
