package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// repack builds a deb with the same content and another version, which sorts before
// or after the original's. change may modify the files.
func repack(t *testing.T, root, deb, how string, change func(tree string)) string {
	t.Helper()
	tree := filepath.Join(t.TempDir(), how)
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("dpkg-deb", "--raw-extract", root+deb, tree)
	control := filepath.Join(tree, "DEBIAN", "control")
	b, err := os.ReadFile(control)
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^Version: (.*)$`)
	is := version.FindStringSubmatch(string(b))
	if is == nil {
		t.Fatalf("%s names no version:\n%s", deb, b)
	}
	// A tilde sorts before the end, a plus after it.
	now := is[1] + map[string]string{"older": "~older", "newer": "+newer"}[how]
	writeFile(t, control, version.ReplaceAllString(string(b), "Version: "+now))
	if change != nil {
		change(tree)
	}
	// Checksums would reveal the changed conffile.
	_ = os.Remove(filepath.Join(tree, "DEBIAN", "md5sums"))
	to := strings.TrimSuffix(deb, ".deb") + "-" + how + ".deb"
	run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, root+to)
	return to
}
