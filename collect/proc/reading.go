package proc

import (
	"bytes"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/internal/kernel"
)

// readProcess reads the counts of a process, using buf. reaped is the value of its last
// reading. If the process has reaped children since, it reads both files until nothing is
// reaped between them: a child's counts must be in both files or in neither.
func readProcess(root string, pid int, reaped uint64, buf []byte) (r reading, err error) {
	// The open directory pins the process, even if its number is reused between the two
	// files.
	dir, err := openProc(root, pid, "", unix.O_DIRECTORY|unix.O_PATH)
	if err != nil {
		return r, err
	}
	defer unix.Close(dir)
	const tries = 50
	var stat kernel.Stat
	for range tries {
		if r.io, stat, err = readFiles(root, pid, dir, buf); err != nil {
			return r, err
		}
		r = reading{pid: pid, start: stat.Start, parent: stat.Parent, ending: stat.Ended(),
			faults: stat.Faults + stat.ReapedFaults, reaped: stat.ReapedFaults, io: r.io}
		switch {
		case stat.State == 'X':
			// The kernel is about to remove the process. Only after that has the
			// parent certainly inherited its counts.
			time.Sleep(100 * time.Microsecond)
		case r.reaped == reaped:
			return r, r.askThreads(root, stat.Threads)
		}
		reaped = r.reaped
	}
	if stat.State == 'X' {
		return r, errGone
	}
	return r, r.askThreads(root, stat.Threads)
}

// askThreads determines whether a process whose main thread is exiting continues with
// another thread.
func (r *reading) askThreads(root string, threads uint64) error {
	if !r.ending || threads < 2 {
		return nil
	}
	_, err := kernel.LiveThread(root, r.pid)
	r.ending = err != nil
	if err != nil && !isGone(err) {
		return err
	}
	return nil
}

// readFiles reads /proc/PID/io and then stat.
func readFiles(root string, pid, dir int, buf []byte) (c ioCounts, s kernel.Stat, err error) {
	b, err := kernel.ReadSmall(dir, "io", buf)
	if err != nil {
		err = wrapProc("read", root, pid, "/io", err)
		if isGone(err) {
			if _, e := kernel.ReadSmall(dir, "stat", buf); e == nil {
				err = &collect.UnsupportedError{Reason: "this kernel does not count the I/O of processes (CONFIG_TASK_IO_ACCOUNTING)", Detail: fmt.Sprintf("there is no %s/%d/io", root, pid)}
			}
		}
		return c, s, err
	}
	if c, err = parseIO(b); err != nil {
		return c, s, fmt.Errorf("%s/%d/%w", root, pid, err)
	}
	if b, err = kernel.ReadSmall(dir, "stat", buf); err != nil {
		return c, s, wrapProc("read", root, pid, "/stat", err)
	}
	if s, err = kernel.ParseStat(b); err != nil {
		err = fmt.Errorf("%s/%d/%w", root, pid, err)
	}
	return c, s, err
}

// parseIO parses /proc/PID/io: a name and a number on each line.
func parseIO(b []byte) (c ioCounts, err error) {
	l := kernel.Lines{File: "io", Rest: b}
	var found [ioFields]bool
	for {
		line, ok, err := l.Next()
		if err != nil {
			return c, err
		}
		if !ok {
			break
		}
		name, value, ok := bytes.Cut(line, colon)
		if !ok {
			return c, l.Errorf("%.40q has no colon", line)
		}
		for i, want := range ioNames {
			if string(name) != want {
				continue
			}
			f, _ := kernel.Field(value)
			if c[i], ok = kernel.Uint(f); !ok {
				return c, l.Errorf("the value %.30q of %s is not a number", value, name)
			}
			found[i] = true
		}
	}
	for i := range found {
		if !found[i] {
			l.N++
			return c, l.Errorf("%s is missing", ioNames[i])
		}
	}
	return c, nil
}

var colon = []byte(":")
