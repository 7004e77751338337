package bpf

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/loopdev"
	"nodeskoop/internal/testkit/need"
)

// diskStats are the kernel's counts for a disk (Documentation/block/stat.rst).
type diskStats struct {
	reads, writes, running, discards uint64
	writing                          time.Duration // sum over all writes, counted per request
}

func (d diskStats) since(before diskStats) diskStats {
	return diskStats{d.reads - before.reads, d.writes - before.writes, d.running, d.discards - before.discards, d.writing - before.writing}
}

func statsOf(t testing.TB, disk string) (d diskStats) {
	t.Helper()
	data, err := os.ReadFile("/sys/block/" + filepath.Base(disk) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(data))
	if len(f) < 12 {
		t.Fatalf("%s: %q", disk, data)
	}
	var writing uint64 // in milliseconds
	for i, to := range map[int]*uint64{0: &d.reads, 4: &d.writes, 7: &writing, 8: &d.running, 11: &d.discards} {
		if *to, err = strconv.ParseUint(f[i], 10, 64); err != nil {
			t.Fatalf("%s: %v", disk, err)
		}
	}
	d.writing = time.Duration(writing) * time.Millisecond
	return d
}

// rest waits until a disk is idle, and returns its counts.
func (l *testLoader) rest(disk string) (d diskStats) {
	l.t.Helper()
	l.eventually("the disk to be idle", func() bool {
		d = statsOf(l.t, disk)
		return d.running == 0
	})
	return d
}

// ofDisk returns a disk's events in the order of time, once the disk is idle and
// all events are read. The process that waits for an I/O may continue before the
// event is written.
func (l *testLoader) ofDisk(disk string) (events []Event) {
	l.t.Helper()
	l.rest(disk)
	for _, typ := range []EventType{Biolat10ms, Biolat100ms} {
		l.eventually("the events to be read", func() bool { a := l.account(typ); return a.Read == a.Written })
		for _, e := range l.taken(typ, 0, 0) {
			if e.Device() == filepath.Base(disk) {
				events = append(events, e)
			}
		}
	}
	slices.SortFunc(events, func(a, b Event) int { return cmp.Compare(a.Clock, b.Clock) })
	return events
}

const (
	// blockIOs is the number of I/Os per case, each to a separate, distant page, so
	// that none are merged.
	blockIOs  = 20
	blockGap  = 64 << 10
	blockPage = 4096
)

// blockCase is one way to do I/O, and the expected result.
type blockCase struct {
	name  string
	flags int
	do    func(f *os.File, at int64) error
	// operation of the events, with BlockBackground if no process waits
	operation, bytes uint32
	// done returns the expected number by the kernel's count; nil means blockIOs.
	done func(diskStats) uint64
	// beside lists further operations that the case causes and that become events.
	beside []uint32
}

func blockCases() []blockCase {
	read := func(f *os.File, at int64) error {
		_, err := f.ReadAt(aligned(blockPage), at)
		return err
	}
	write := func(f *os.File, at int64) error {
		_, err := f.WriteAt(aligned(blockPage), at)
		return err
	}
	reads := func(d diskStats) uint64 { return d.reads }
	writes := func(d diskStats) uint64 { return d.writes }
	return []blockCase{
		{name: "direct reads", flags: unix.O_DIRECT, do: read, operation: BlockRead, bytes: blockPage, done: reads},
		{name: "direct writes", flags: unix.O_DIRECT, do: write, operation: BlockWrite, bytes: blockPage, done: writes},
		{name: "O_DSYNC writes", flags: unix.O_DSYNC, do: write, operation: BlockWrite, bytes: blockPage, beside: []uint32{BlockFlush}},
		{name: "flushes", do: func(f *os.File, _ int64) error { return f.Sync() }, operation: BlockFlush},
		{name: "writeback", do: func(f *os.File, at int64) error {
			if err := write(f, at); err != nil {
				return err
			}
			return unix.SyncFileRange(int(f.Fd()), at, blockPage, unix.SYNC_FILE_RANGE_WRITE)
		}, operation: BlockWrite | BlockBackground, bytes: blockPage, done: writes},
		{name: "read-ahead", do: func(f *os.File, at int64) error {
			return unix.Fadvise(int(f.Fd()), at, blockPage, unix.FADV_WILLNEED)
		}, operation: BlockRead | BlockBackground, bytes: blockPage, done: reads},
		{name: "discards", do: func(f *os.File, at int64) error {
			bounds := [2]uint64{uint64(at), blockPage}
			if _, _, err := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&bounds))); err != 0 {
				return err
			}
			return nil
		}, operation: BlockDiscard | BlockBackground, bytes: blockPage, done: func(d diskStats) uint64 { return d.discards }},
	}
}

// TestBiolatencyTells: I/O that a process waits for becomes an event, with its
// operation and the time in the queue and in the device. Other I/O is counted and
// ignored, unless Background is set.
func TestBiolatencyTells(t *testing.T) {
	for _, background := range []bool{false, true} {
		for _, c := range blockCases() {
			name := strings.ReplaceAll(c.name, " ", "-")
			if background {
				name += "-with-background"
			}
			t.Run(name, func(t *testing.T) {
				eachRung(t, "biolatency", func(t *testing.T, rung Kind) { testBiolatencyTells(t, rung, c, background) })
			})
		}
	}
}

func testBiolatencyTells(t *testing.T, rung Kind, c blockCase, background bool) {
	need.Root(t)
	disk := loopdev.New(t)
	f, err := os.OpenFile(disk, os.O_RDWR|c.flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
	p := l.load("biolatency", Config{Slow: Zero, Slow100: time.Hour, Background: background, ownIO: true})
	before, account, slow := l.rest(disk), l.account(Biolat10ms), counters(t, p, 0)[DiskSlow]
	for i := range blockIOs {
		switch err := c.do(f, int64(i)*blockGap); {
		case errors.Is(err, unix.EOPNOTSUPP):
			t.Skipf("this kernel: the loop device does no %s: %v", c.name, err)
		case err != nil:
			t.Fatalf("%s: %v", c.name, err)
		}
		l.rest(disk)
	}
	did, caused := l.rest(disk).since(before), uint64(blockIOs)
	if c.done != nil {
		if caused = c.done(did); caused < blockIOs {
			t.Fatalf("%d %s, of which the disk did %d", blockIOs, c.name, caused)
		}
	}
	a := l.balanced(Biolat10ms, p, DiskSlow)
	l.count(p, c.name+" of a loop device: counted", caused, min(caused, counters(t, p, 0)[DiskSlow]-slow))
	told := caused
	if c.operation&BlockBackground != 0 && !background {
		told = 0
		l.count(p, c.name+" of a loop device: ignored", caused, min(caused, a.Ignored-account.Ignored))
	}
	var got uint64
	for _, e := range l.ofDisk(disk) {
		switch {
		case slices.Contains(c.beside, e.Detail):
			continue
		case e.Detail != c.operation:
			t.Errorf("told of operation %#x of %d bytes by %s[%d], want %#x", e.Detail, e.Bytes, e.Comm(), e.PID, c.operation)
			continue
		}
		got++
		queue, device := e.Points[PointQueue], e.Points[PointDevice]
		if e.Bytes != c.bytes || queue+device > e.Latency || c.bytes > 0 && device == 0 {
			t.Errorf("%d bytes, want %d; in the queue for %v, in the device for %v of %v", e.Bytes, c.bytes, queue, device, e.Latency)
		}
	}
	l.count(p, c.name+" of a loop device: told", told, got)
}

// TestBiolatencyReaders: the kernel marks all reads of files as read-ahead, whether
// or not a process waits for them. Only those with a waiting process become events.
func TestBiolatencyReaders(t *testing.T) {
	eachRung(t, "biolatency", func(t *testing.T, rung Kind) {
		need.Root(t)
		var disk string
		if need.InVM() {
			disk = "/dev/" + diskOf(t, diskOf200ms)
		} else {
			disk = slowedLoop(t, 5)
		}
		f, err := os.OpenFile(disk, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil { // no read-ahead beyond the request
			t.Fatal(err)
		}
		l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
		// With Background every read is an event.
		p := l.load("biolatency", Config{Slow: Zero, Background: true, ownIO: true})
		const n, slow = 6, 50 * time.Millisecond
		at := int64(0)
		read := func() error {
			_, err := f.ReadAt(make([]byte, blockPage), at)
			return err
		}
		ahead := func() error { return unix.Fadvise(int(f.Fd()), at, blockPage, unix.FADV_WILLNEED) }
		before := l.rest(disk)
		for _, c := range []struct {
			what      string
			do        func() error
			operation uint32
		}{
			{"slow reads of a file", read, BlockRead},
			{"slow reads ahead", ahead, BlockRead | BlockBackground},
		} {
			old := len(l.ofDisk(disk))
			var caused, right uint64
			if !testkit.Within(testkit.Patience, func() bool { // the disk accumulates credit for a burst
				for range n {
					if at += 256 << 10; at >= 4<<20 {
						at = at&(256<<10-1) + blockPage // a page that was not read before
					}
					if err := c.do(); err != nil {
						t.Fatalf("%s: %v", c.what, err)
					}
				}
				caused, right = 0, 0
				for _, e := range l.ofDisk(disk)[old:] {
					if e.Latency < slow {
						continue // the reader may not be asleep yet
					}
					caused++
					if e.Detail == c.operation {
						right++
					}
				}
				return caused >= n
			}) {
				t.Errorf("only %d %s", caused, c.what)
			}
			l.count(p, c.what+" are told as what they are", caused, right)
		}
		reads := l.rest(disk).since(before).reads
		l.count(p, "reads of a file and reads ahead", reads, uint64(len(l.ofDisk(disk))))
	})
}

// TestBiolatencyOwn: this process's own I/O is counted but never becomes an event,
// whatever the configuration; another process's does.
func TestBiolatencyOwn(t *testing.T) {
	eachRung(t, "biolatency", func(t *testing.T, rung Kind) {
		need.Root(t)
		need.Program(t, "dd")
		disk := loopdev.New(t)
		f, err := os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
		p := l.load("biolatency", Config{Slow: Zero, Slow100: time.Hour, Background: true})
		before := l.rest(disk)
		ignored := l.account(Biolat10ms).Ignored
		for i := range blockIOs {
			if _, err := f.ReadAt(aligned(blockPage), int64(i)*blockGap); err != nil {
				t.Fatal(err)
			}
		}
		own := l.rest(disk).since(before).reads
		a := l.balanced(Biolat10ms, p, DiskSlow)
		l.count(p, "own reads: ignored", own, min(own, a.Ignored-ignored))
		if e := l.ofDisk(disk); len(e) > 0 {
			t.Errorf("own reads are told: %+v", e[0])
		}
		cmd := exec.Command("dd", "if="+disk, "of=/dev/null", "bs=4096", "count="+strconv.Itoa(blockIOs), "iflag=direct")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("dd: %v: %s", err, out)
		}
		l.balanced(Biolat10ms, p, DiskSlow)
		var told uint64
		for _, e := range l.ofDisk(disk) {
			if e.Comm() != "dd" || e.Detail&BlockOperation != BlockRead {
				t.Errorf("told of operation %#x by %s[%d], not dd", e.Detail, e.Comm(), e.PID)
			}
			if e.Detail == BlockRead && e.Bytes == blockPage {
				told++
			}
		}
		l.count(p, "reads of another process: told", blockIOs, min(blockIOs, told))
	})
}

// TestBiolatencyOwnInPIDNamespace: the same in a PID namespace, where the kernel's
// PIDs differ.
func TestBiolatencyOwnInPIDNamespace(t *testing.T) {
	need.Root(t)
	need.Program(t, "dd")
	cmd := exec.Command(os.Args[0], "-test.run=^TestBiolatencyOwn$", "-test.v")
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestBiolatencyOwn/") {
		t.Errorf("in a PID namespace: %v\n%s", err, out)
	}
}

// TestBiolatencyIgnoredTakeNoRoom: ignored I/O takes no tokens from the kernel's
// event limit.
func TestBiolatencyIgnoredTakeNoRoom(t *testing.T) {
	eachRung(t, "biolatency", func(t *testing.T, rung Kind) {
		need.Root(t)
		disk := loopdev.New(t)
		f, err := os.OpenFile(disk, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const burst = 500
		l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e-6, EventBurst: burst})
		p := l.load("biolatency", Config{Slow: Zero, Slow100: time.Hour, ownIO: true})
		before := l.rest(disk)
		ignored := func() uint64 { return l.account(Biolat10ms).Ignored }
		for ignored0 := ignored(); ignored() < ignored0+2*burst; {
			for i := range int64(32) {
				if _, err := f.WriteAt(make([]byte, blockPage), i*blockGap); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE); err != nil {
				t.Fatal(err)
			}
			if l.rest(disk).since(before).writes > 20*burst {
				break // the kernel ran no program
			}
		}
		l.count(p, "writes of which none takes room: ignored", 2*burst, min(2*burst, ignored()))
		a := l.balanced(Biolat10ms, p, DiskSlow)
		if a.Written < burst && a.Suppressed > 0 {
			t.Errorf("%+v with room for %d", a, burst)
		}
		if e := l.ofDisk(disk); len(e) > 0 {
			t.Errorf("told: %+v", e[0])
		}
	})
}

// TestBiolatencyQueue: if a disk processes one of four concurrent writes at a time,
// the others wait in the queue, and none waits long in the device.
func TestBiolatencyQueue(t *testing.T) {
	eachRung(t, "biolatency", func(t *testing.T, rung Kind) {
		need.Root(t)
		const delay, writers = 100 * time.Millisecond, 4
		disk := slowNull(t, delay)
		f, err := os.OpenFile("/dev/"+disk, os.O_WRONLY|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l := newTestLoader(t, Options{Hooks: rung, EventRate: 1e6, EventBurst: 1e6})
		p := l.load("biolatency", Config{Slow: Zero, Slow100: time.Hour, ownIO: true})
		// All writers must be able to wait in the kernel at the same time.
		if procs := runtime.GOMAXPROCS(0); procs <= writers {
			runtime.GOMAXPROCS(writers + 1)
			t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
		}
		var caused uint64
		before := len(l.ofDisk(disk))
		var waited, fastest, longest, sum, took time.Duration
		if !testkit.Within(testkit.Patience, func() bool {
			old := len(l.ofDisk(disk))
			calls := make(chan time.Duration)
			before, missed := statsOf(t, disk), l.missed()
			sum = 0
			for i := range writers {
				go func() {
					start := time.Now()
					if _, err := f.WriteAt(aligned(blockPage), int64(i)<<20); err != nil {
						t.Error(err)
					}
					calls <- time.Since(start)
				}()
			}
			waited, fastest, longest = 0, 0, 0
			for range writers {
				longest = max(longest, <-calls)
			}
			caused += writers
			if missed = l.missed() - missed; missed > 0 {
				// A kernel with real-time preemption may preempt a program at a tracepoint
				// (since 7.0), and skips it for the other tasks of the CPU.
				caused -= missed
				return false
			}
			told := l.ofDisk(disk)[old:]
			took = statsOf(t, disk).since(before).writing
			for _, e := range told {
				queue, device := e.Points[PointQueue], e.Points[PointDevice]
				if queue+device != e.Latency {
					t.Errorf("%v in the queue and %v in the device of %v", queue, device, e.Latency)
				}
				sum += e.Latency
				waited = max(waited, queue)
				if fastest == 0 || device < fastest {
					fastest = device
				}
			}
			return longest >= writers*delay-delay/2
		}) {
			t.Fatalf("%d writes at a time took no longer than %v", writers, longest)
		}
		l.count(p, "writes at a time: told", caused, uint64(len(l.ofDisk(disk))-before))
		// One write is in the device, others in its queue as far as it has room.
		// Writers that find the queue full wait before their request exists, and no
		// tracepoint shows that wait.
		if fastest < delay || waited < delay-delay/4 {
			t.Errorf("%v in the device that takes %v, and up to %v in its queue", fastest, delay, waited)
		}
		if wrong := (sum - took).Abs(); wrong > delay/4 {
			t.Errorf("%d writes took %v in queue and device, by the kernel's own count %v", writers, sum, took)
		}
		t.Logf("up to %v in the queue, from %v on in the device, %v in all", waited, fastest, sum)
	})
}
