package collect

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// NetFS calls read with a procfs whose net/ is that of the target's network
// namespace: the directory of a process in it, by a descriptor that pins the
// process, or, where only a bind mount holds the namespace, that of a thread
// inside. what names the file in errors. A file that this kernel does not have is
// fs.ErrNotExist.
func (v *View) NetFS(what string, read func(procfs.FS) error) error {
	from := func(root string) error {
		proc, err := procfs.NewFS(root)
		if err != nil {
			return err
		}
		return read(proc)
	}
	err := v.openNetns()
	if err == nil {
		err = v.Do(v.pid, what, func() error { return from("/proc/self/fd/" + strconv.Itoa(v.dir)) })
		if errors.Is(err, unix.ENOENT) {
			if _, e := v.netnsOf(v.dir, v.pid); e == nil {
				return fmt.Errorf("read %s/%d/%s: %w", v.plan.procRoot, v.pid, what, fs.ErrNotExist)
			}
		}
		if err != nil {
			return v.procError("read", v.pid, what, err)
		}
		return nil
	}
	if err == errAbandoned || v.t.path == "" {
		return err
	}
	err = v.Do(0, v.t.path+" "+what, func() error {
		return v.inNetns(unix.AT_FDCWD, v.t.path, v.t.inode, func() error { return from(v.plan.procRoot + "/thread-self") })
	})
	if err != nil && err != errAbandoned && !errors.Is(err, kernel.ErrGone) {
		return fmt.Errorf("read %s in the network namespace %s: %w", what, v.t.path, err)
	}
	return err
}
