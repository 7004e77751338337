package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"nodeskoop/bpf/internal/objects"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/loopdev"
	"nodeskoop/internal/testkit/need"
)

// TestBiolatencyForgetsWhatNeverEnded: a request that never completed leaves its
// entry behind. The next request in the same structure, which may reach the device
// without a scheduler's queue, must start from its own time.
func TestBiolatencyForgetsWhatNeverEnded(t *testing.T) {
	eachRung(t, "biolatency", func(t *testing.T, rung Kind) {
		need.Root(t)
		device := loopdev.New(t)
		// Without a scheduler, since requests would be seen on insertion.
		scheduler := "/sys/block/" + filepath.Base(device) + "/queue/scheduler"
		if was, err := os.ReadFile(scheduler); err == nil {
			_, rest, _ := strings.Cut(string(was), "[")
			now, _, _ := strings.Cut(rest, "]")
			if err := os.WriteFile(scheduler, []byte("none"), 0); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.WriteFile(scheduler, []byte(now), 0) })
		}
		f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
		p := l.load("biolatency", Config{Slow: Zero, Slow100: time.Hour, ownIO: true})
		requests := p.maps["requests"]

		// The addresses of this device's requests, read while they run.
		known := map[uint64]bool{}
		learn := func() {
			var stop atomic.Bool
			var reading sync.WaitGroup
			reading.Go(func() {
				buffer := aligned(1 << 20)
				for !stop.Load() {
					if _, err := f.ReadAt(buffer, 0); err != nil {
						t.Error(err)
						return
					}
				}
			})
			seen := false
			l.eventually("requests to be seen", func() bool {
				var key uint64
				var value objects.BiolatencyIssued
				for i := requests.Iterate(); i.Next(&key, &value); {
					if int(value.Pid) == os.Getpid() { // other disks have requests of their own
						known[key], seen = true, true
					}
				}
				return seen && len(known) >= 4
			})
			stop.Store(true)
			reading.Wait()
		}

		// The clock starts at boot, which may be recent.
		ago := min(10*time.Second, now()/2)
		const once = 600
		n, injected, used := 0, 0, 0
		buffer := aligned(4096)
		// Which structures a read uses depends on the sending CPU.
		if !testkit.Within(testkit.Patience, func() bool {
			learn()
			for i := range once {
				earlier := uint64(now() - ago)
				for key := range known {
					switch err := requests.Update(key, objects.BiolatencyIssued{TimeNs: earlier, Wait: uint8(objects.BiolatencyWaitSOMEBODY)}, ebpf.UpdateNoExist); {
					case err == nil:
						injected++
					case !errors.Is(err, ebpf.ErrKeyExist):
						t.Fatal(err)
					}
				}
				if _, err := f.ReadAt(buffer, int64(i)*4096); err != nil {
					t.Fatal(err)
				}
				n++
			}
			// An entry is created again after a request has used the previous one.
			used = injected - len(known)
			return used >= 5
		}) {
			t.Errorf("only %d entries were met", used)
		}
		var seen, others int
		var longest time.Duration
		l.eventually("the events", func() bool {
			seen, others = 0, 0
			for _, e := range l.taken(Biolat10ms, 0, 0) {
				if e.Device() == filepath.Base(device) && e.Detail == 0 {
					seen++
					longest = max(longest, e.Latency)
					if int(e.PID) != os.Getpid() {
						others++
					}
				}
			}
			return seen >= n
		})
		if longest >= ago || others > 0 {
			t.Errorf("a read took %v, and %d reads were another's, by entries of earlier uses", longest, others)
		}
		t.Logf("%d structures, %d entries left behind, %d reads, the longest %v", len(known), injected, seen, longest)
	})
}

// slowNull creates a null_blk that processes one request at a time, each taking
// delay, so that further ones stay in mq-deadline's queue, where they are merged.
// It has a write cache and supports FUA, whose writes bypass that queue.
func slowNull(t *testing.T, delay time.Duration) (name string) {
	t.Helper()
	const configfs = "/sys/kernel/config"
	if _, err := os.Stat(configfs + "/nullb"); err != nil {
		if err := unix.Mount("configfs", configfs, "configfs", 0, ""); err == nil {
			t.Cleanup(func() { _ = unix.Unmount(configfs, unix.MNT_DETACH) })
		}
	}
	_, err := os.Stat(configfs + "/nullb")
	need.VM(t, err == nil, "no null_blk with configfs")
	disks := func() (names []string) {
		found, err := filepath.Glob("/sys/block/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			names = append(names, filepath.Base(f))
		}
		return names
	}
	before := disks()
	dir := configfs + "/nullb/nsmerge"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path, value string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			t.Fatalf("write %q to %s: %v", value, path, err)
		}
	}
	t.Cleanup(func() {
		_ = os.WriteFile(dir+"/power", []byte("0"), 0)
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	for _, a := range [][2]string{{"size", "64"}, {"memory_backed", "1"}, {"cache_size", "8"}, {"queue_mode", "2"}, {"submit_queues", "1"}, {"hw_queue_depth", "1"},
		{"irqmode", "2"}, {"completion_nsec", strconv.Itoa(int(delay))}, {"blocksize", "4096"}, {"power", "1"}} {
		write(dir+"/"+a[0], a[1])
	}
	for _, d := range disks() {
		if !slices.Contains(before, d) {
			name = d
		}
	}
	if name == "" {
		t.Fatal("null_blk made no disk")
	}
	queue := "/sys/block/" + name + "/queue/"
	schedulers, err := os.ReadFile(queue + "scheduler")
	need.VM(t, err == nil && strings.Contains(string(schedulers), "mq-deadline"), fmt.Sprintf("no mq-deadline for null_blk: %s, %v", schedulers, err))
	write(queue+"scheduler", "mq-deadline")
	write(queue+"nr_requests", "8")
	return name
}

// TestBiolatencyMerged merges two requests in mq-deadline's queue, one of which is
// freed without completion. Later FUA writes use the same structure and go to the
// device without that queue.
func TestBiolatencyMerged(t *testing.T) {
	eachRung(t, "biolatency", func(t *testing.T, rung Kind) {
		need.Root(t)
		const delay, pause = 100 * time.Millisecond, 3 * time.Second
		name := slowNull(t, delay)
		open := func(flags int) *os.File {
			t.Helper()
			f, err := os.OpenFile("/dev/"+name, os.O_WRONLY|unix.O_DIRECT|flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		}
		plain, fua := open(0), open(unix.O_DSYNC)
		l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
		p := l.load("biolatency", Config{Slow: Zero, Slow100: time.Hour, ownIO: true})

		merged := func() uint64 {
			text, err := os.ReadFile("/sys/block/" + name + "/stat")
			fields := strings.Fields(string(text))
			if err != nil || len(fields) < 6 {
				t.Fatalf("%q, %v", text, err)
			}
			n, _ := strconv.ParseUint(fields[5], 10, 64)
			return n
		}
		const block = 4096
		const most = 30
		rounds := 0
		for before := merged(); merged() < before+2; rounds++ {
			if rounds == most {
				t.Fatalf("no two requests were merged in %d attempts", most)
			}
			// One write keeps the device busy, two leave a gap between them, and
			// one fills the gap.
			var writing sync.WaitGroup
			for _, at := range []int64{1000, 0, 2, 1} {
				writing.Go(func() {
					if _, err := plain.WriteAt(aligned(block), at*block); err != nil {
						t.Error(err)
					}
				})
				time.Sleep(delay / 8)
			}
			writing.Wait()
		}
		time.Sleep(pause)
		// More requests than there are structures.
		const n = 20
		longest := time.Duration(0)
		for i := range n {
			start := time.Now()
			if _, err := fua.WriteAt(aligned(block), (2000+int64(i)*10)*block); err != nil {
				t.Fatal(err)
			}
			longest = max(longest, time.Since(start))
		}
		var worst time.Duration
		var seen int
		l.eventually("the events", func() bool {
			seen, worst = 0, 0
			for _, e := range l.taken(Biolat10ms, 0, 0) {
				if e.Device() == name {
					seen++
					worst = max(worst, e.Latency)
				}
			}
			return seen >= n
		})
		l.count(p, "latencies beyond a pause after requests were merged", 0, uint64(max(0, worst/pause)))
		if worst >= pause {
			t.Errorf("an event says %v; the longest call took %v", worst, longest)
		}
		t.Logf("%d rounds, %d merges, %d events, the worst %v, the longest call %v", rounds, merged(), seen, worst, longest)
	})
}
