// Package slowfile provides a slow file: a file system of one file, which the test
// itself implements through FUSE. A loop device backed by it is a disk that is
// slow for all users, without limits in control groups.
package slowfile

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/loopdev"
	"nodeskoop/internal/testkit/need"
)

// The parts of linux/fuse.h in use.
const (
	opForget    = 2
	opGetattr   = 3
	opSetattr   = 4
	opOpen      = 14
	opRead      = 15
	opWrite     = 16
	opRelease   = 18
	opFsync     = 20
	opFlush     = 25
	opInit      = 26
	opInterrupt = 36
	opDestroy   = 38
	opBatch     = 42 // FUSE_BATCH_FORGET

	directIO   = 1 // FOPEN_DIRECT_IO: no page is cached, so that each read is slow
	headerSize = 40
)

// variable makes the test's own binary the server. A server within the test's
// process could not be killed while that process waits for it.
const variable = "NODESKOOP_TEST_SLOWFILE"

func init() {
	var s server
	if _, err := fmt.Sscanf(os.Getenv(variable), "%d %d", &s.size, &s.after); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if err := s.serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(0)
}

// Disk creates a block device of size bytes, all zero, whose reads and writes take
// at least the time after. It ends with the test.
func Disk(t testing.TB, size int64, after time.Duration) (device string) {
	t.Helper()
	need.Root(t)
	path := filepath.Join(t.TempDir(), "slow")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	need.Kernel(t, err == nil, fmt.Sprintf("no /dev/fuse: %v", err))
	defer file.Close()
	options := fmt.Sprintf("fd=%d,rootmode=100600,user_id=0,group_id=0", file.Fd())
	if err := unix.Mount("slow", path, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatalf("mount a file of FUSE on %s: %v", path, err)
	}
	// The device keeps the file open, so the mount can be removed at once and does
	// not outlive the test.
	defer func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	}()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d", variable, size, after))
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = os.Stderr
	testkit.Hold(t, cmd)
	_ = file.Close()
	return loopdev.Over(t, path)
}

type server struct {
	size  int64
	after time.Duration
}

// device is the descriptor of /dev/fuse in the server.
const device = 3

// serve answers requests until the file system is unmounted.
func (s *server) serve() error {
	b := make([]byte, 1<<20+4096)
	for {
		n, err := unix.Read(device, b)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err == unix.ENODEV {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a request of FUSE: %w", err)
		}
		if n < headerSize {
			continue
		}
		op, unique := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint64(b[8:])
		body := b[headerSize:n]
		switch op {
		case opForget, opBatch, opInterrupt:
		case opInit:
			s.reply(unique, 0, initAnswer())
		case opGetattr, opSetattr:
			s.reply(unique, 0, s.attributes())
		case opOpen:
			answer := make([]byte, 16)
			binary.NativeEndian.PutUint32(answer[8:], directIO)
			s.reply(unique, 0, answer)
		case opRead:
			at, size := int64(binary.NativeEndian.Uint64(body[8:])), int64(binary.NativeEndian.Uint32(body[16:]))
			data := make([]byte, max(min(size, s.size-at), 0))
			time.AfterFunc(s.after, func() { s.reply(unique, 0, data) })
		case opWrite:
			answer := make([]byte, 8)
			copy(answer, body[16:20]) // the whole write
			time.AfterFunc(s.after, func() { s.reply(unique, 0, answer) })
		case opRelease, opFsync, opFlush, opDestroy:
			s.reply(unique, 0, nil)
		default:
			s.reply(unique, -int32(unix.ENOSYS), nil)
		}
	}
}

func (s *server) reply(unique uint64, code int32, body []byte) {
	b := make([]byte, 16, 16+len(body))
	binary.NativeEndian.PutUint32(b, uint32(16+len(body)))
	binary.NativeEndian.PutUint32(b[4:], uint32(code))
	binary.NativeEndian.PutUint64(b[8:], unique)
	if _, err := unix.Write(device, append(b, body...)); err != nil && err != unix.ENOENT && err != unix.ENODEV {
		fmt.Fprintf(os.Stderr, "answer a request of FUSE with %d bytes: %v\n", len(b), err)
	}
}

// initAnswer is struct fuse_init_out of protocol 7.31.
func initAnswer() []byte {
	b := make([]byte, 64)
	binary.NativeEndian.PutUint32(b, 7)
	binary.NativeEndian.PutUint32(b[4:], 31)
	binary.NativeEndian.PutUint16(b[16:], 16)      // max_background
	binary.NativeEndian.PutUint16(b[18:], 12)      // congestion_threshold
	binary.NativeEndian.PutUint32(b[20:], 128<<10) // max_write
	binary.NativeEndian.PutUint32(b[24:], 1)       // time_gran
	return b
}

// attributes is a struct fuse_attr_out.
func (s *server) attributes() []byte {
	b := make([]byte, 104)
	binary.NativeEndian.PutUint64(b, 3600)   // valid for an hour
	binary.NativeEndian.PutUint64(b[16:], 1) // ino
	binary.NativeEndian.PutUint64(b[24:], uint64(s.size))
	binary.NativeEndian.PutUint64(b[32:], uint64(s.size/512))
	binary.NativeEndian.PutUint32(b[76:], unix.S_IFREG|0o600)
	binary.NativeEndian.PutUint32(b[80:], 1) // nlink
	binary.NativeEndian.PutUint32(b[96:], 4096)
	return b
}
