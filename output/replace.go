package output

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ReplaceFile atomically replaces a file meant for a person: the old content stays
// until the last byte is written. It refuses to replace anything but a regular
// file.
func ReplaceFile(path string, mode fs.FileMode, write func(io.Writer) error) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if path == "" || path[len(path)-1] == '/' {
		return fmt.Errorf("write %q: it names a folder; name a file", path)
	}
	at := place{filepath.Dir(abs), filepath.Base(abs)}
	if err := replaceFile(at, mode, write); err != nil {
		var errno unix.Errno
		if errors.As(err, &errno) {
			return fmt.Errorf("write %s: %w%s", path, errno, replaceHint(errno))
		}
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func replaceHint(errno unix.Errno) string {
	switch errno {
	case unix.ENOENT, unix.ENOTDIR:
		return ": there is no such folder"
	case unix.EISDIR, unix.EEXIST:
		return ": a folder has that name; name a file"
	case unix.ENOSPC, unix.EDQUOT:
		return ": free some space there: see df and df -i"
	}
	return ""
}

func replaceFile(at place, mode fs.FileMode, write func(io.Writer) error) error {
	root, err := at.open()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := replaceable(root, at); err != nil {
		return err
	}
	if fi, err := root.Stat(at.file); err == nil && fi.IsDir() {
		return unix.EISDIR
	}
	f, temp, err := create(root)
	if err != nil {
		return err
	}
	defer f.Close() // closes again after success, which does no harm
	err = write(f)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = root.Rename(temp, at.file)
	}
	if err != nil {
		_ = root.Remove(temp)
	}
	return err
}
