package history

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// disk gives a writer access to its folder. Tests replace it.
type disk interface {
	// open creates and locks the folder. It is called again after an error, and after
	// close.
	open() (room, error)
}

// room is a locked folder.
type room interface {
	list() ([]file, error)
	create(name string) (appender, error)
	remove(name string) error
	close()
}

// appender is a file that is only appended to.
type appender interface {
	Write([]byte) (int, error)
	Truncate(int64) error
	Close() error
}

// file is one file of a history.
type file struct {
	name  string
	start time.Time // not later than its first minute
	turn  int       // number among files with the same start
	size  int64     // on disk
}

const nameTime = "20060102T150405Z"

// fileName is the name of the turn-th file with this start: after a restart, or if the
// clock was set back, there are several.
func fileName(start time.Time, turn int) string {
	return start.UTC().Format(nameTime) + "-" + strconv.Itoa(turn) + suffix
}

// parseName is the reverse of fileName.
func parseName(name string) (f file, ok bool) {
	stem, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return f, false
	}
	at, turn, _ := strings.Cut(stem, "-")
	start, err := time.Parse(nameTime, at)
	n, e := strconv.Atoi(turn)
	if err != nil || e != nil || fileName(start, n) != name {
		return f, false
	}
	return file{name: name, start: start, turn: n}, true
}

func compareFiles(a, b file) int {
	if c := a.start.Compare(b.start); c != 0 {
		return c
	}
	return a.turn - b.turn
}

// block is the unit in which files use disk space.
const block = 4096

// files lists the history's files, oldest first. Files with other names are ignored.
func files(root *os.Root) ([]file, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var list []file
	for _, e := range entries {
		f, ok := parseName(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f.size = roundUp(fi.Size())
		list = append(list, f)
	}
	slices.SortFunc(list, compareFiles)
	return list, nil
}

func roundUp(n int64) int64 { return (n + block - 1) / block * block }

// writer appends minutes to files. All methods except limit, size and result are called
// from one goroutine at a time, which may hang in them.
type writer struct {
	opt  Options
	room room // nil: not open

	out     appender // nil: the next minute starts a file
	current file
	length  int64
	last    time.Time // start of the last minute in the current file
	names   *names
	enc     encoder
	retry   time.Time // hour in which writing failed; no retry within it

	mu       sync.Mutex
	maxBytes int64
	maxAge   time.Duration
	all      []file // without the current file
	bytes    int64  // including the current file
	written  uint64
	lost     uint64
	err      error
}

func newWriter(o Options) *writer {
	return &writer{opt: o, maxBytes: o.MaxBytes, maxAge: o.MaxAge}
}

func (w *writer) limit(maxBytes int64, maxAge time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.maxBytes, w.maxAge = maxBytes, maxAge
}

// size returns the size on disk. oldest is zero before the first write, which lists the
// folder.
func (w *writer) size() (bytes int64, oldest time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case len(w.all) > 0:
		oldest = w.all[0].start
	case w.bytes > 0:
		oldest = w.current.start
	}
	return w.bytes, oldest
}

// result returns the minutes written and lost since the last call, and an error if a write
// failed.
func (w *writer) result() (written, lost uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	written, lost, err = w.written, w.lost, w.err
	w.written, w.lost, w.err = 0, 0, nil
	return written, lost, err
}

// append writes a minute. After an error it does not try again before the next hour.
func (w *writer) append(m *minute) {
	hour := m.start.Truncate(60 * w.opt.Minute)
	if w.retry.Equal(hour) {
		w.drop(nil)
		return
	}
	if err := w.put(hour, m); err != nil {
		w.retry = hour
		w.close()
		w.drop(err)
		return
	}
	w.retry = time.Time{}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written++
}

func (w *writer) drop(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost++
	if err != nil {
		w.err = err
	}
}

func (w *writer) put(hour time.Time, m *minute) error {
	if w.room == nil {
		r, err := w.opt.disk.open()
		if err != nil {
			return err
		}
		w.room = r
	}
	limit := w.fileLimit()
	if w.out != nil && (!w.current.start.Equal(hour) || !m.start.After(w.last) || w.length >= limit || w.names.full()) {
		_ = w.out.Close()
		w.out = nil
	}
	if w.out == nil {
		if err := w.begin(hour); err != nil {
			return err
		}
	}
	b, err := w.enc.frame(w.names, m)
	if err != nil {
		return err
	}
	if err := w.trim(m.to.wall, int64(len(b))); err != nil {
		return err
	}
	if _, err := w.out.Write(b); err != nil {
		// Remove a partial frame. If that fails, readers ignore it.
		_ = w.out.Truncate(w.length)
		return fmt.Errorf("append to %s: %w", filepath.Join(w.opt.Dir, w.current.name), err)
	}
	w.length += int64(len(b))
	w.last = m.start
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bytes += roundUp(w.length) - w.current.size
	w.current.size = roundUp(w.length)
	return nil
}

// fileLimit is the maximum size of a file. It is small compared with MaxBytes, so that
// removing a whole file leaves most of the history.
func (w *writer) fileLimit() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return min(maxFile, w.maxBytes/8)
}

// maxTaken is the number of names that may be taken by something other than a file.
const maxTaken = 100

// begin starts a file.
func (w *writer) begin(hour time.Time) error {
	list, err := w.room.list()
	if err != nil {
		return fmt.Errorf("list %s: %w", w.opt.Dir, err)
	}
	f := file{start: hour}
	bytes := int64(0)
	for _, old := range list {
		bytes += old.size
		if old.start.Equal(hour) {
			f.turn = old.turn + 1
		}
	}
	f.name = fileName(hour, f.turn)
	out, err := w.room.create(f.name)
	for n := 0; errors.Is(err, fs.ErrExist) && n < maxTaken; n++ { // by something that is no file
		f.turn++
		f.name = fileName(hour, f.turn)
		out, err = w.room.create(f.name)
	}
	if err != nil {
		return err
	}
	w.out, w.length, w.last, w.names = out, 0, time.Time{}, newNames()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all, w.current, w.bytes = list, f, bytes
	return nil
}

// inFuture is how far ahead a file may be dated before it counts as written under a wrong
// clock.
const inFuture = 24 * time.Hour

// trim removes files until more bytes fit. It removes at most one file per minute because
// of its age, so that a clock that is wrong for a moment costs only one file.
func (w *writer) trim(now time.Time, more int64) error {
	w.mu.Lock()
	most, age := w.maxBytes, w.maxAge
	over := w.bytes + roundUp(w.length+more) - w.current.size - most
	var doomed []file
	if len(w.all) > 0 && over <= 0 && now.Sub(w.all[0].start) > age+60*w.opt.Minute {
		doomed = append(doomed, w.all[0])
	}
	if over > 0 {
		ahead := func(f file) bool { return f.start.Sub(now) > inFuture }
		for _, inTurn := range []bool{true, false} {
			for _, f := range w.all {
				if over > 0 && ahead(f) == inTurn {
					doomed = append(doomed, f)
					over -= f.size
				}
			}
		}
	}
	w.mu.Unlock()
	for _, f := range doomed {
		if err := w.room.remove(f.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s to keep below %d bytes and %v: %w", filepath.Join(w.opt.Dir, f.name), most, age, err)
		}
		w.mu.Lock()
		w.all = slices.DeleteFunc(w.all, func(x file) bool { return x.name == f.name })
		w.bytes -= f.size
		w.mu.Unlock()
	}
	return nil
}

// close closes the file and releases the folder's lock.
func (w *writer) close() {
	if w.out != nil {
		_ = w.out.Close()
		w.out = nil
	}
	if w.room != nil {
		w.room.close()
		w.room = nil
	}
}

// folder is the real disk.
type folder struct{ dir string }

// ErrInUse says that another process writes its history to the folder.
var ErrInUse = errors.New("another process writes its history there")

const lockName = "lock"

type lockedFolder struct {
	root *os.Root
	lock *os.File
}

func (f folder) open() (room, error) {
	state := filepath.Dir(f.dir)
	if err := os.MkdirAll(filepath.Dir(state), 0o755); err != nil {
		return nil, err
	}
	for _, dir := range []string{state, f.dir} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return nil, err
	}
	lock, err := root.OpenFile(lockName, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err == nil {
		if err = kernel.Lock(lock); err != nil {
			_ = lock.Close()
		}
	}
	if err != nil {
		_ = root.Close()
		if errors.Is(err, kernel.ErrLocked) {
			return nil, fmt.Errorf("%s: %w", f.dir, ErrInUse)
		}
		return nil, err
	}
	return &lockedFolder{root, lock}, nil
}

func (l *lockedFolder) list() ([]file, error) { return files(l.root) }

func (l *lockedFolder) create(name string) (appender, error) {
	f, err := l.root.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (l *lockedFolder) remove(name string) error { return l.root.Remove(name) }

func (l *lockedFolder) close() {
	_ = l.lock.Close()
	_ = l.root.Close()
}
