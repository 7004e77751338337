package nsnet

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
)

// socketsPerProcess stays below a limit on open files that cannot be raised everywhere.
const socketsPerProcess = 10000

const socketsVariable = "NODESKOOP_TEST_SOCKETS"

// A process of Sockets runs the test's own program, which does only this.
func init() {
	n, err := strconv.Atoi(os.Getenv(socketsVariable))
	if err != nil {
		return
	}
	if err := holdSockets(n); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// Sockets makes n established TCP sockets over lo, an even number of them, in
// processes of their own. They end with the test.
func (s *Space) Sockets(n int) {
	s.t.Helper()
	for n > 0 {
		part := min(n, socketsPerProcess)
		n -= part
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), socketsVariable+"="+strconv.Itoa(part))
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			s.t.Fatal(err)
		}
		s.Do(func() { _, err = testkit.TryHold(s.t, cmd) })
		if err != nil {
			s.t.Fatal(err)
		}
		if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
			s.t.Fatalf("the process that holds sockets said %q", line)
		}
	}
}

// holdSockets makes n established sockets, half of them the connecting ends, and keeps them
// open.
func holdSockets(n int) error {
	MoreFiles()
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(l, 100); err != nil {
		return err
	}
	to, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	for i := range n / 2 {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return fmt.Errorf("socket %d: %w", i, err)
		}
		if err := unix.Connect(c, to); err != nil {
			return fmt.Errorf("connect socket %d: %w", i, err)
		}
		if _, _, err = unix.Accept(l); err != nil {
			return err
		}
	}
	return unix.Close(l)
}

// Connections sets lo up, and makes n established TCP connections over it and their
// listening socket. All belong to this process until the end of the test.
func (s *Space) Connections(n int) {
	s.t.Helper()
	var err error
	s.Do(func() { err = s.connections(n) })
	if err != nil {
		s.t.Fatalf("make %d connections: %v", n, err)
	}
}

func (s *Space) connections(n int) error {
	keep := func(fd int, err error) (int, error) {
		if err == nil {
			s.t.Cleanup(func() { _ = unix.Close(fd) })
		}
		return fd, err
	}
	l, err := keep(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	if err != nil {
		return err
	}
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(l, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(l, max(n, 1)); err != nil {
		return err
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	for range n {
		c, err := keep(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
		if err != nil {
			return err
		}
		if err := unix.Connect(c, addr); err != nil {
			return err
		}
		if _, err := keep(first(unix.Accept4(l, unix.SOCK_CLOEXEC))); err != nil {
			return err
		}
	}
	return nil
}

// first drops the peer's address.
func first(fd int, _ unix.Sockaddr, err error) (int, error) { return fd, err }

// MoreFiles raises this process's limit on open files to its maximum.
func MoreFiles() {
	limit := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		return
	}
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
}
