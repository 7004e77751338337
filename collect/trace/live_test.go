package trace

import (
	"os"
	"path/filepath"
	"testing"

	"nodeskoop/internal/kernel"
)

// TestLiveNetns: a namespace is in use by a process whose main thread has ended
// while another one runs.
func TestLiveNetns(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"7/ns/net":           "",
		"8/stat":             "8 (x) Z 1 1 1 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 8\n",
		"8/task/8/stat":      "8 (x) Z 1 1 1 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 8\n",
		"8/task/9/stat":      "9 (x) S 1 1 1 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 9\n",
		"8/task/9/ns/net":    "",
		"10/stat":            "10 (x) Z 1 1 1 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 10\n",
		"10/task/10/stat":    "10 (x) Z 1 1 1 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 10\n",
		"10/task/10/ns/some": "",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, pid := range []string{"8", "10"} { // as procfs lists it
		if err := os.MkdirAll(filepath.Join(root, pid, "ns"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("nowhere", filepath.Join(root, pid, "ns", "net")); err != nil {
			t.Fatal(err)
		}
	}
	alive := liveNetns(root)
	for name, want := range map[string]bool{"7/ns/net": true, "8/task/9/ns/net": true, "10/task/10/ns/some": false} {
		inode, err := kernel.Inode(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if alive[inode] != want {
			t.Errorf("%s: in use %v, want %v", name, alive[inode], want)
		}
	}
}
