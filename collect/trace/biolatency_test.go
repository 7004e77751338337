package trace

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/internal/testkit/loopdev"
	"nodeskoop/internal/testkit/need"
)

// TestBlockEvents: a process that waits for a disk causes an event with the wait.
// Writeback is counted and ignored, or reported if configured. This process's own
// reads are always ignored.
func TestBlockEvents(t *testing.T) {
	need.Program(t, "dd")
	for _, writeback := range []bool{false, true} {
		t.Run("writeback="+strconv.FormatBool(writeback), func(t *testing.T) {
			l := newLab(t, EventLimits{1e6, 1e6}, map[string]map[string]any{
				"biolatency": {"slow": time.Nanosecond, "writeback": writeback},
			}, "biolatency")
			disk := loopdev.New(t)
			const n, block = 10, 4096
			dd := func(args ...string) {
				t.Helper()
				args = append(args, "bs="+strconv.Itoa(block), "count="+strconv.Itoa(n))
				if out, err := exec.Command("dd", args...).CombinedOutput(); err != nil {
					t.Fatalf("dd %v: %v: %s", args, err, out)
				}
			}
			dd("if="+disk, "of=/dev/null", "iflag=direct")
			dd("if=/dev/zero", "of="+disk, "oflag=direct", "conv=notrunc")
			f, err := os.OpenFile(disk, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			// Keep others from writing these pages back, which would be reported as
			// their I/O.
			if _, err := f.WriteAt(make([]byte, block), 1<<20); err != nil {
				t.Fatal(err)
			}
			dd("if=/dev/zero", "of="+disk, "seek=512", "conv=notrunc", "oflag=dsync")
			if err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE); err != nil {
				t.Fatal(err)
			}
			of := func(operation string) (told int) {
				for _, typ := range []string{"BIOLAT_10MS", "BIOLAT_100MS"} {
					for _, e := range l.sink.of(typ) {
						if e.Disk != filepath.Base(disk) || e.Operation != operation {
							continue
						}
						told++
						var sum time.Duration
						for _, p := range e.Points {
							sum += p.Latency
						}
						if sum > e.Latency || operation != "flush" && e.Bytes == 0 || e.PID == os.Getpid() || !strings.HasPrefix(string(e.AppendWhat(nil)), operation) {
							t.Errorf("%s: %+v", e.Message(), e)
						}
					}
				}
				return told
			}
			total := l.settled("BIOLAT_10MS", 3*n)
			more := l.settled("BIOLAT_100MS", 0)
			t.Logf("%d reads, %d writes, %d flushes; %+v, %+v", of("read"), of("write"), of("flush"), total, more)
			if total.Ignored+more.Ignored == 0 {
				t.Error("nothing was ignored, not even what this process wrote")
			}
			for _, operation := range []string{"read", "write"} {
				if got, want := of(operation), map[string]int{"read": n, "write": 2 * n}[operation]; got < want {
					t.Errorf("%d of %d times %s of %s are told", got, want, operation, disk)
				}
			}
		})
	}
}

func TestOperationNames(t *testing.T) {
	for detail, want := range map[uint32]string{
		bpf.BlockRead: "read", bpf.BlockRead | bpf.BlockBackground: "read-ahead",
		bpf.BlockWrite: "write", bpf.BlockWrite | bpf.BlockBackground: "writeback",
		bpf.BlockFlush: "flush", bpf.BlockDiscard | bpf.BlockBackground: "discard",
		bpf.BlockSecureErase | bpf.BlockBackground: "secure-erase", bpf.BlockWriteZeroes | bpf.BlockBackground: "write-zeroes",
		34 | bpf.BlockBackground: "", 7: "",
	} {
		if got := operationName(detail); got != want {
			t.Errorf("%#x: %q, want %q", detail, got, want)
		}
	}
}
