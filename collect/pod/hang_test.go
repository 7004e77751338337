package pod

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/hang"
)

// A kernel that does not list addresses delays a caller once, for netlinkTimeout. While two
// listings hang, further ones fail at once; when they end, listing works again.
func TestAddressesThatAreNotListed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	release := hang.Open(t, file)
	for range maxHungLists {
		begin := time.Now()
		if _, err := addrsIn(file, 1); !errors.Is(err, bounded.ErrNoAnswer) || time.Since(begin) > 5*netlinkTimeout {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	}
	begin := time.Now()
	if _, err := addrsIn("/proc/self/ns/net", 0); err == nil || time.Since(begin) > netlinkTimeout/2 {
		t.Errorf("while others hang: after %v: %v", time.Since(begin), err)
	}
	release()
	testkit.Eventually(t, "no listing counts as hanging", func() bool { return hungLists.Load() == 0 })
	if _, err := addrsIn("/proc/self/ns/net", 0); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
