package check

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// Any user may start a process with any name and arguments, and may put any file
// into a folder of their own. check must not let them choose its findings, or the
// commands that it suggests to root. A process therefore counts only if its
// executable is verified, and its arguments only as far as they can be verified.

// maxCmdline limits the bytes read of a command line, which a process can make as
// long as its memory.
const maxCmdline = 64 << 10

// machineProcess is a process found by name.
type machineProcess struct {
	pid  string
	name string // name of the executable, or argv[0] if that is unknown
	args []string
	// doubt is why the process is not trusted, "" if it is.
	doubt string
}

// processesNamed returns processes whose executable, or argv[0], has one of the
// names.
func (k *checker) processesNamed(names ...string) []machineProcess {
	entries, _ := kernel.DirNames(k.path("/proc"))
	slices.SortFunc(entries, func(a, b string) int {
		x, _ := strconv.Atoi(a)
		y, _ := strconv.Atoi(b)
		return x - y
	})
	var out []machineProcess
	for _, pid := range entries {
		if _, err := strconv.ParseUint(pid, 10, 31); err != nil {
			continue
		}
		dir := k.path("/proc/" + pid)
		b, err := readAtMost(dir+"/cmdline", maxCmdline)
		if err != nil || len(b) == 0 {
			continue
		}
		p := machineProcess{pid: pid, args: strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")}
		p.name = filepath.Base(p.args[0])
		exe, err := os.Readlink(dir + "/exe")
		runs := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
		switch {
		case err != nil && slices.Contains(names, p.name):
			p.doubt = "its executable is unknown: " + innermost(err).Error()
		case err != nil:
			continue
		case slices.Contains(names, runs):
			p.name, p.doubt = runs, k.doubtOf(dir)
		case slices.Contains(names, p.name):
			p.doubt = "it runs " + exe
		default:
			continue
		}
		out = append(out, p)
	}
	return out
}

// innermost unwraps an error down to the kernel's.
func innermost(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// doubtOf returns why a process whose executable has the right name is not trusted,
// "" if it is. It is trusted if root owns the executable and the system, not a
// login session, started the process. Processes of the checking user are trusted
// too.
func (k *checker) doubtOf(dir string) string {
	fi, err := os.Stat(dir + "/exe")
	if err != nil {
		return "its executable is unknown: " + innermost(err).Error()
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !fi.Mode().IsRegular():
		return "its executable is no file"
	case st.Uid != 0 && int(st.Uid) != k.uid:
		return fmt.Sprintf("its executable belongs to user %d", st.Uid)
	case fi.Mode().Perm()&0o022 != 0:
		return fmt.Sprintf("others may write its executable (mode %#o)", fi.Mode().Perm())
	}
	uids, err := uidsIn(dir + "/status")
	if err != nil {
		return "its user is unknown: " + err.Error()
	}
	for _, uid := range uids {
		if !systemUser(uid) && uid != k.uid && !k.startedBySystem(dir) {
			return fmt.Sprintf("it is user %d's", uid)
		}
	}
	return ""
}

// uidsIn parses the four user IDs in a process's status.
func uidsIn(status string) ([]int, error) {
	b, err := readAtMost(status, maxCmdline)
	if err != nil {
		return nil, innermost(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		rest, ok := strings.CutPrefix(line, "Uid:")
		if !ok {
			continue
		}
		var uids []int
		for _, f := range strings.Fields(rest) {
			n, err := strconv.Atoi(f)
			if err != nil {
				return nil, fmt.Errorf("%q is no user", f)
			}
			uids = append(uids, n)
		}
		if len(uids) > 0 {
			return uids, nil
		}
	}
	return nil, errors.New("its status has no line Uid")
}

// systemUser reports whether a user ID belongs to no person: root's, a package's,
// nobody's, or one that systemd allocates to a unit (DynamicUser=).
func systemUser(uid int) bool {
	return uid < 1000 || uid >= 61184 && uid <= 65519 || uid == 65534
}

// startedBySystem reports whether the process is in a container's control group,
// which only root can create. A service's control group is no proof: cron starts
// commands of users.
func (k *checker) startedBySystem(dir string) bool {
	b, err := readAtMost(dir+"/cgroup", maxCmdline)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 || f[0] != "0" && f[1] != "name=systemd" {
			continue
		}
		first, rest, _ := strings.Cut(strings.TrimPrefix(f[2], "/"), "/")
		second, _, _ := strings.Cut(rest, "/")
		if strings.HasPrefix(first, "kubepods") || first == "machine.slice" || first == "docker" || first == "system.slice" && strings.HasSuffix(second, ".scope") {
			return true
		}
	}
	return false
}

// readAtMost reads the first `most` bytes of a file.
func readAtMost(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// errLink is the error for a symbolic link in place of a file.
var errLink = errors.New("it is a symbolic link, which is not followed")

// openRegular opens a regular file for reading. It refuses links, FIFOs, whose open
// waits for a writer, and devices, whose open may have side effects.
func openRegular(path string) (*os.File, error) {
	fail := func(err error) (*os.File, error) { return nil, fmt.Errorf("open %s: %w", path, err) }
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail(err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFLNK:
		return fail(errLink)
	default:
		return fail(errors.New("it is not a regular file: node_exporter may hang on it at each scrape"))
	}
	// Reopen the inspected file itself, since its name may belong to another file by
	// now.
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return fail(innermost(err))
	}
	return f, nil
}

// Limits for expanding folder patterns, which any process may have on its command
// line.
const (
	maxPatterns     = 16     // patterns of one process
	maxPatternNames = 20_000 // names compared
	maxPatternTime  = 2 * time.Second
	maxPatternDepth = 32
)

var errTooMuch = errors.New("its pattern matches too many names")

// folderWalk looks for a folder below a root by a pattern.
type folderWalk struct {
	root  int // file descriptor
	want  os.FileInfo
	names int
	until time.Time
}

// readsFolder reports whether one of a process's patterns matches the folder, as
// seen in the process's file system, and returns that pattern.
func (k *checker) readsFolder(pid string, patterns []string, dir string) (string, bool, error) {
	want, err := os.Stat(k.path(dir))
	if err != nil {
		return "", false, err
	}
	if len(patterns) > maxPatterns {
		return "", false, errTooMuch
	}
	type answer struct {
		pattern string
		ok      bool
		err     error
	}
	done := make(chan answer, 1)
	go func() { // the process's file system may hang
		root, err := unix.Open(filepath.Join(k.path("/proc"), pid, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- answer{err: fmt.Errorf("read its files: %w", err)}
			return
		}
		defer unix.Close(root)
		w := folderWalk{root: root, want: want, until: time.Now().Add(maxPatternTime)}
		var last error
		for _, p := range patterns {
			ok, err := w.find(p)
			if ok {
				done <- answer{pattern: p, ok: true}
				return
			}
			last = errors.Join(last, err)
		}
		done <- answer{err: last}
	}()
	select {
	case a := <-done:
		return a.pattern, a.ok, a.err
	case <-time.After(maxPatternTime + time.Second):
		return "", false, errors.New("its file system does not answer")
	}
}

// find reports whether the pattern matches the folder. A path that does not exist
// is not an error.
func (w *folderWalk) find(pattern string) (bool, error) {
	if !filepath.IsAbs(pattern) {
		return false, fmt.Errorf("%q is relative to an unknown folder", pattern)
	}
	parts := strings.Split(strings.Trim(filepath.Clean(pattern), "/"), "/")
	if len(parts) > maxPatternDepth {
		return false, errTooMuch
	}
	return w.below("/", parts)
}

// below matches the rest of a pattern below a path.
func (w *folderWalk) below(path string, parts []string) (bool, error) {
	for len(parts) > 0 && !strings.ContainsAny(parts[0], `*?[\`) {
		path, parts = filepath.Join(path, parts[0]), parts[1:]
	}
	if len(parts) == 0 {
		fd, err := w.open(path, unix.O_PATH)
		if err != nil {
			return false, nil
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		fi, err := f.Stat()
		return err == nil && os.SameFile(fi, w.want), nil
	}
	fd, err := w.open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	if err != nil {
		return false, nil
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	for {
		names, err := f.Readdirnames(256)
		for _, name := range names {
			if w.names++; w.names > maxPatternNames || time.Now().After(w.until) {
				return false, errTooMuch
			}
			fits, err := filepath.Match(parts[0], name)
			if err != nil {
				return false, nil // node_exporter does not read it either
			}
			if !fits {
				continue
			}
			if ok, err := w.below(filepath.Join(path, name), parts[1:]); ok || err != nil {
				return ok, err
			}
		}
		if err != nil || len(names) == 0 {
			return false, nil
		}
	}
}

// open opens a path inside the process's root, so that links resolve there.
func (w *folderWalk) open(path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat2(w.root, path, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) || time.Now().After(w.until) {
			return fd, err
		}
	}
}

// sameRoot reports whether a process has the same root folder as this machine.
func (k *checker) sameRoot(pid string) bool {
	here, err := os.Stat(k.path("/"))
	there, err2 := os.Stat(filepath.Join(k.path("/proc"), pid, "root"))
	return err == nil && err2 == nil && os.SameFile(here, there)
}
