// Package output has the sinks: all output of nodeskoop passes through it.
package output

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"
)

// ErrInUse says that another process writes the same textfile.
var ErrInUse = errors.New("another process writes this file")

// ErrNotReplaced says that a file that must not be replaced has the textfile's name. It is
// left unchanged.
var ErrNotReplaced = errors.New("it is left as it is")

// DefaultMode is the mode of a textfile: node_exporter runs as another user.
const DefaultMode fs.FileMode = 0o644

const (
	// node_exporter also reads hidden files, but only *.prom.
	tempPrefix = ".nodeskoop-"
	tempSuffix = ".tmp"

	// unlockedMode is the mode of a temporary file that its writer has not locked yet. A
	// finished textfile is always readable by its owner.
	unlockedMode = 0o200
	ownerReads   = 0o400

	// lockGrace is how long a writer may take between creating and locking a file, which
	// are two consecutive system calls.
	lockGrace = 5 * time.Second

	// oldTemp is the age at which a temporary file counts as a leftover on a file system
	// without locks.
	oldTemp = time.Minute

	// takeOverAge is the age at which a textfile is taken over although another process
	// holds it. A process that is stopped, or was killed while it hung in the kernel, must
	// not block its successor until the next boot. A writer with a long interval lives
	// although its file is old: takeOverMissed intervals must have passed, too.
	takeOverAge    = 10 * time.Minute
	takeOverMissed = 3
)

// TextfileStats are a Textfile's statistics.
type TextfileStats struct {
	// Bytes is the size of the last file written.
	Bytes int64
	// Failures counts failed writes.
	Failures uint64
	// Dropped counts series left out because readers would have rejected the whole file.
	Dropped uint64
}

// Textfile writes a file of metrics for node_exporter's textfile collector. It writes a
// temporary file in the same folder and renames it, so a reader always finds one complete
// file, even if the writer is killed.
//
// Nothing is synced to disk: the file is worthless after a reboot, when the service removes
// it, and a slow disk would delay sampling.
//
// One process writes a file. The writer keeps the current file open with an open file
// description lock (fcntl F_OFD_SETLK, exclusive) that it takes before the rename. So there
// is no lock file to clean up; the lock ends with the process; it works across mount,
// network and PID namespaces; and a process that may only read the file cannot take it,
// unlike a flock. The price: while the writer runs, the file system cannot be unmounted or
// remounted read-only.
//
// All methods may be called from any goroutine.
type Textfile struct {
	log *slog.Logger

	path atomic.Pointer[string] // path for callers that must not wait for a write

	mu     sync.Mutex
	at     place
	mode   fs.FileMode
	enc    encoder
	held   *os.File    // the current file, if this process wrote it
	folder os.FileInfo // as of the last write
	where  string      // path of folder without symbolic links
	stale  string      // our temporary file that could not be removed
	noLock bool        // the lack of locks has been logged

	takeOver          atomic.Int64 // age at which a file that another process holds is taken over, in nanoseconds
	bytes             atomic.Int64
	failures, dropped atomic.Uint64
}

// place is the location of a file.
type place struct{ dir, file string }

func (p place) String() string { return filepath.Join(p.dir, p.file) }

// open opens the folder. A write uses this descriptor only, even if the path changes
// meanwhile. Because of the slash, open fails on a FIFO instead of blocking.
func (p place) open() (*os.Root, error) { return os.OpenRoot(p.dir + "/") }

// NewTextfile returns the Textfile for a file in the folder dir. Mode 0 means DefaultMode;
// the umask is ignored. If another process writes the file, the error is ErrInUse. The
// folder may be missing: each write looks for it.
func NewTextfile(dir, file string, mode fs.FileMode, log *slog.Logger) (*Textfile, error) {
	return NewTextfileOf(0, dir, file, mode, log)
}

// NewTextfileOf is NewTextfile for a file that its writers replace each interval. Another
// writer is taken for dead only after some intervals.
func NewTextfileOf(interval time.Duration, dir, file string, mode fs.FileMode, log *slog.Logger) (*Textfile, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &Textfile{log: log}
	t.SetInterval(interval)
	t.enc.guard.log = log
	if err := t.Retarget(dir, file, mode); err != nil {
		return nil, err
	}
	return t, nil
}

// Retarget changes the place and the mode from the next write on, and removes the file in
// the old place. If the new name is not a regular file, the error is ErrNotReplaced. On an
// error nothing changes.
func (t *Textfile) Retarget(dir, file string, mode fs.FileMode) error {
	if mode == 0 {
		mode = DefaultMode
	}
	switch {
	case dir == "" || strings.ContainsRune(dir, 0):
		return fmt.Errorf("the textfile's folder %q: want the path of the folder that node_exporter reads", dir)
	case file == "" || file == "." || file == ".." || strings.ContainsAny(file, "/\x00") || len(file) > 255:
		return fmt.Errorf("the textfile's name %q: want a plain file name of at most 255 bytes", file)
	case strings.HasPrefix(file, tempPrefix) && strings.HasSuffix(file, tempSuffix):
		return fmt.Errorf("the textfile's name %q: %s*%s are the temporary files", file, tempPrefix, tempSuffix)
	case mode&^fs.ModePerm != 0 || mode&ownerReads == 0:
		return fmt.Errorf("the textfile's mode %#o: want at most 0777, and readable by the owner", uint32(mode))
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("find the textfile's folder: %w", err)
	}
	next := place{dir, file}

	t.mu.Lock()
	defer t.mu.Unlock()
	same := next == t.at
	if root, err := next.open(); err == nil {
		defer root.Close()
		if err := replaceable(root, next); err != nil {
			return fmt.Errorf("textfile %s: %w", next, err)
		}
		if err := t.taken(root, next); err != nil {
			return fmt.Errorf("textfile %s: %w", next, err)
		}
		if fi, err := root.Lstat(file); err == nil && t.ours(fi) {
			same = true // another path of the same file
		}
	}
	if !same {
		if err := t.remove(); err != nil {
			t.log.Warn("the textfile at the old path stays", "error", err)
		}
		t.folder, t.where = nil, ""
	}
	t.at, t.mode = next, mode
	path := next.String()
	t.path.Store(&path)
	return nil
}

// SetInterval changes the interval at which the file is replaced; see NewTextfileOf.
func (t *Textfile) SetInterval(interval time.Duration) {
	t.takeOver.Store(int64(max(takeOverAge, takeOverMissed*interval)))
}

// Path returns the absolute path of the file, without waiting for a Write.
func (t *Textfile) Path() string { return *t.path.Load() }

// Stats returns the statistics, without waiting for a Write.
func (t *Textfile) Stats() TextfileStats {
	return TextfileStats{Bytes: t.bytes.Load(), Failures: t.failures.Load(), Dropped: t.dropped.Load()}
}

// Write replaces the file by one with these families. On an error the old file stays, and
// no other file is left in the folder. Series and families that would make readers reject
// the file are left out, counted and logged.
func (t *Textfile) Write(families []*dto.MetricFamily) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.write(families)
	t.dropped.Store(t.enc.guard.dropped)
	if err != nil {
		t.failures.Add(1)
		return fmt.Errorf("write %s: %w", t.at, err)
	}
	t.bytes.Store(n)
	return nil
}

func (t *Textfile) write(families []*dto.MetricFamily) (int64, error) {
	root, err := t.at.open()
	if err != nil {
		return 0, step("open the folder", err)
	}
	defer root.Close()
	if err := t.enter(root); err != nil {
		return 0, err
	}
	if err := replaceable(root, t.at); err != nil {
		return 0, err
	}
	if err := t.taken(root, t.at); err != nil {
		return 0, err
	}
	if t.stale != "" {
		// If files cannot be removed from the folder, do not fill it with temporary files.
		if err := root.Remove(t.stale); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, step("remove the temporary file "+t.stale+" of an earlier write", err)
		}
		t.stale = ""
	}
	f, temp, err := create(root)
	if err != nil {
		return 0, step("create a temporary file in the folder", err)
	}
	n, err := t.fill(f, families)
	link := ""
	if err == nil {
		link, _ = root.Readlink(t.at.file)
		if err = replaceable(root, t.at); err == nil {
			err = t.rename(root, temp)
		}
	}
	if err != nil {
		if e := root.Remove(temp); e != nil && !errors.Is(e, fs.ErrNotExist) {
			_ = f.Truncate(0)
			t.stale = temp
			err = fmt.Errorf("%w; %w", err, step("then remove the temporary file "+temp, e))
		}
		_ = f.Close()
		return 0, err
	}
	t.release()
	t.held = f
	if link != "" {
		t.log.Warn("the textfile's path was a symbolic link; it is replaced by the file, and the link's target is unchanged", "file", t.at.String(), "link", link)
	}
	return n, nil
}

// rename replaces the file by the temporary file.
func (t *Textfile) rename(root *os.Root, temp string) error {
	err := root.Rename(temp, t.at.file)
	if errors.Is(err, fs.ErrExist) {
		err = unix.EISDIR // package os checks first, with another error than the kernel's
	}
	if err != nil {
		return step("rename the temporary file to "+t.at.file, err)
	}
	return nil
}

// replaceable returns an ErrNotReplaced if the file must not be replaced: it is not a
// regular file, nor a symbolic link to one or to nothing (such a link is replaced itself);
// or it belongs to another user in a folder like /tmp, where anyone may take a name. For a
// folder it returns nil: rename fails on it.
func replaceable(root *os.Root, at place) error {
	if onProcfs(at.dir) {
		return fmt.Errorf("%w: %s is procfs, where names stand for open files of processes; name a file elsewhere", ErrNotReplaced, at.dir)
	}
	fi, err := root.Lstat(at.file)
	if err != nil {
		return nil // the file does not exist; the write reports other errors
	}
	found := fi.Mode()
	if found&fs.ModeSymlink != 0 {
		if leadsToProcfs(at.String()) {
			return fmt.Errorf("%w: it is a symbolic link to an open file of a process; name another file", ErrNotReplaced)
		}
		found = 0 // a dangling link may be replaced, too
		if to, err := os.Stat(at.String()); err == nil {
			found = to.Mode()
		}
	}
	if !found.IsRegular() && !fi.IsDir() {
		return fmt.Errorf("%w: it is %s, not a regular file; name another file", ErrNotReplaced, kindOf(found))
	}
	folder, err := root.Stat(".")
	if err != nil {
		return nil
	}
	own, ok := fi.Sys().(*syscall.Stat_t)
	dir, ok2 := folder.Sys().(*syscall.Stat_t)
	if ok && ok2 && folder.Mode()&fs.ModeSticky != 0 && folder.Mode()&0o022 != 0 &&
		own.Uid != uint32(os.Geteuid()) && own.Uid != dir.Uid {
		return fmt.Errorf("%w: it belongs to user %d, and anyone may take names in %s (mode %#o, sticky); name another file, or remove it", ErrNotReplaced, own.Uid, at.dir, uint32(folder.Mode().Perm()))
	}
	return nil
}

// kindOf names the type of a file that is not regular.
func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeDir != 0:
		return "a folder"
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeCharDevice != 0:
		return "a character device"
	case m&fs.ModeDevice != 0:
		return "a block device"
	}
	return "something else"
}

// leadsToProcfs reports whether a symbolic link leads into procfs, directly or through
// other links. A link in procfs is not resolved by its text: /dev/stdout is a regular file
// if standard output is one.
func leadsToProcfs(path string) bool {
	for range 40 { // the kernel's limit
		to, err := os.Readlink(path)
		if err != nil {
			return false
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		if onProcfs(filepath.Dir(to)) {
			return true
		}
		path = to
	}
	return false
}

func onProcfs(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// create makes a temporary file. With O_EXCL it does not open a file that somebody else
// created under that name.
func create(root *os.Root) (f *os.File, name string, err error) {
	for range 10 {
		name = tempPrefix + strconv.FormatUint(rand.Uint64(), 36) + tempSuffix
		f, err = root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, unlockedMode)
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return f, name, err
}

// claim locks a new temporary file, and then sets its mode, which tells others that the
// lock is valid.
func (t *Textfile) claim(f *os.File) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil && !t.noLock {
		// Nobody else can have opened the file, so the file system does not support locks.
		t.noLock = true
		t.log.Warn("the textfile cannot be locked on this file system; a second writer would go unnoticed", "file", t.at.String(), "error", err)
	}
	if err := f.Chmod(t.mode); err != nil {
		return step(fmt.Sprintf("set the mode %#o of the temporary file", uint32(t.mode)), err)
	}
	return nil
}

// fill writes families to the temporary file, and reports also errors that appear only at
// close.
func (t *Textfile) fill(f *os.File, families []*dto.MetricFamily) (int64, error) {
	if err := t.claim(f); err != nil {
		return 0, err
	}
	n, err := t.enc.encode(f, families)
	if err != nil {
		return n, step("write the temporary file", err)
	}
	// The file stays open for its lock. Closing a duplicate descriptor makes a network file
	// system write back and report errors.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	if err != nil {
		return n, step("close the temporary file", err)
	}
	return n, nil
}

// writeLocked reports whether anyone holds an exclusive lock on the file.
func writeLocked(f *os.File) (bool, error) {
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock)
	return lock.Type != unix.F_UNLCK, err
}

// enter checks which folder the path leads to. Operators may replace a folder by a symbolic
// link, which is logged. A folder that is new to this process is cleaned of leftovers.
func (t *Textfile) enter(root *os.Root) error {
	fi, err := root.Stat(".")
	if err != nil {
		return step("stat the folder", err)
	}
	if t.folder != nil && os.SameFile(t.folder, fi) {
		return nil
	}
	where := t.at.dir
	if d, err := root.Open("."); err == nil {
		if p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", d.Fd())); err == nil {
			where = p
		}
		_ = d.Close()
	}
	if t.folder != nil {
		t.log.Warn("the textfile's folder was replaced; files in the former one stay there",
			"folder", t.at.dir, "before", t.where, "now", where)
	}
	t.folder, t.where, t.stale = fi, where, ""
	if err := t.clean(root); err != nil {
		t.log.Warn("leftovers of an earlier run stay in the textfile's folder", "error", err)
	}
	return nil
}

// taken returns ErrInUse if another process writes the file.
func (t *Textfile) taken(root *os.Root, at place) error {
	for range 100 {
		fi, err := root.Lstat(at.file)
		if err != nil {
			return nil // the file does not exist; the write reports other errors
		}
		if !fi.Mode().IsRegular() || t.ours(fi) {
			return nil
		}
		f, err := root.OpenFile(at.file, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil // not readable: access depends on the folder's permissions
		}
		fi, err = f.Stat()
		locked, lockErr := writeLocked(f)
		now, nowErr := root.Lstat(at.file)
		_ = f.Close() // close it only now, since its inode number could be reused
		switch {
		case err != nil || lockErr != nil:
			return nil
		case !locked && (nowErr != nil || os.SameFile(now, fi)):
			return nil
		case !locked:
			continue // the writer has just replaced the file
		}
		if age := time.Since(fi.ModTime()); age > time.Duration(t.takeOver.Load()) {
			t.log.Warn("taking over the textfile from a process that holds it but has not written it",
				"file", at.String(), "for", age.Round(time.Second))
			return nil
		}
		return fmt.Errorf("%w: stop it, or set another textfile.file; `fuser -v %s` names it", ErrInUse, at)
	}
	return fmt.Errorf("%w: it is replaced again and again", ErrInUse)
}

// ours reports whether fi is the last file that this process wrote.
func (t *Textfile) ours(fi os.FileInfo) bool {
	if t.held == nil {
		return false
	}
	held, err := t.held.Stat()
	return err == nil && os.SameFile(held, fi)
}

func (t *Textfile) release() {
	if t.held != nil {
		_ = t.held.Close() // fill has reported the errors
		t.held = nil
	}
}

// Clean removes the temporary files of dead writers from the folder. The first write into a
// folder does so, too.
func (t *Textfile) Clean() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	root, err := t.at.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean %s: %w", t.at.dir, step("open the folder", err))
	}
	defer root.Close()
	return t.clean(root)
}

func (t *Textfile) clean(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("clean %s: %w", t.at.dir, step("open the folder", err))
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("clean %s: %w", t.at.dir, step("list the folder", err))
	}
	var errs []error
	for _, name := range names {
		if !strings.HasPrefix(name, tempPrefix) || !strings.HasSuffix(name, tempSuffix) || !leftover(root, name) {
			continue
		}
		if err := root.Remove(name); err == nil {
			t.log.Info("removed the temporary file of a writer that was killed", "file", filepath.Join(t.at.dir, name))
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("clean %s: %w", t.at.dir, step("remove "+name, err)))
		}
	}
	return errors.Join(errs...)
}

// leftover reports whether a temporary file's writer is dead: the file was locked, and is
// not any more. If that cannot be determined, the age decides.
func leftover(root *os.Root, name string) bool {
	fi, err := root.Lstat(name)
	if err != nil || !fi.Mode().IsRegular() {
		return false
	}
	age := time.Since(fi.ModTime())
	if fi.Mode()&ownerReads == 0 {
		return age > lockGrace
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return age > oldTemp
	}
	defer f.Close()
	locked, err := writeLocked(f)
	if err != nil {
		return age > oldTemp
	}
	return !locked
}

// Remove removes the file if this process wrote it, and releases the lock, so that nothing
// serves stale values after a clean stop. Later writes are possible.
func (t *Textfile) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.remove()
}

func (t *Textfile) remove() error {
	defer t.release()
	if t.held == nil && t.stale == "" {
		return nil
	}
	root, err := t.at.open()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove %s: %w", t.at, step("open the folder", err))
	}
	defer root.Close()
	if t.stale != "" {
		_ = root.Remove(t.stale)
		t.stale = ""
	}
	if t.held == nil {
		return nil
	}
	fi, err := root.Lstat(t.at.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("remove %s: %w", t.at, step("look at it", err))
	case !t.ours(fi):
		return fmt.Errorf("remove %s: it is not the file that this process wrote; it is left as it is", t.at)
	}
	if err := root.Remove(t.at.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", t.at, step("unlink it", err))
	}
	return nil
}

// Close releases the lock, and leaves the file in place.
func (t *Textfile) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release()
}

// step adds to an error what failed and what to do about it.
func step(what string, err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("%s: %w", what, err)
	}
	if hint := hint(errno); hint != "" {
		return fmt.Errorf("%s: %w (%s)", what, errno, hint)
	}
	return fmt.Errorf("%s: %w", what, errno)
}

func hint(errno unix.Errno) string {
	switch errno {
	case unix.ENOENT:
		return "create the folder if it is missing, or set textfile.dir to the one that node_exporter reads"
	case unix.ENOTDIR:
		return "set textfile.dir to a folder, the one that node_exporter reads"
	case unix.EROFS:
		return "the file system is mounted read-only; in a systemd unit the folder must be in ReadWritePaths="
	case unix.EACCES:
		return "give user " + strconv.Itoa(os.Geteuid()) + " write permission on the folder, or the process CAP_DAC_OVERRIDE"
	case unix.EPERM:
		return "see lsattr -d on the folder and lsattr on the file: one may be immutable or append-only"
	case unix.ENOSPC:
		return "free space or inodes: see df and df -i; or leave out metrics with metrics.exclude"
	case unix.EDQUOT:
		return "raise the disk quota, or leave out metrics with metrics.exclude"
	case unix.EFBIG:
		return "raise the limit on file sizes, or leave out metrics with metrics.exclude"
	case unix.EISDIR:
		return "a folder has the file's name: remove it, or set another textfile.file"
	case unix.EBUSY:
		return "something is mounted on the file: unmount it, or set another textfile.file"
	case unix.EMFILE, unix.ENFILE:
		return "too many open files: see LimitNOFILE= and fs.file-max"
	case unix.EIO:
		return "the disk fails: see dmesg"
	case unix.ELOOP:
		return "the folder's symbolic links lead in a circle"
	}
	return ""
}
