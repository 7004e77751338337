package slowfile

import (
	"os"
	"testing"
	"time"
)

// TestDisk: the device has the requested size, and its reads and writes are slow.
func TestDisk(t *testing.T) {
	const after = 50 * time.Millisecond
	device := Disk(t, 1<<20, after)
	f, err := os.OpenFile(device, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if size, err := f.Seek(0, 2); err != nil || size != 1<<20 {
		t.Errorf("it has %d bytes (%v), want %d", size, err, 1<<20)
	}
	b := make([]byte, 4096)
	start := time.Now()
	if _, err := f.ReadAt(b, 512<<10); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < after {
		t.Errorf("a read took %v, want %v at least", took, after)
	}
	start = time.Now()
	if _, err := f.WriteAt(b, 256<<10); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < after {
		t.Errorf("a write took %v, want %v at least", took, after)
	}
}
