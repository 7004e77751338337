package systemd

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listen makes a service manager's socket that nobody reads.
func listen(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

// fill sends until the socket is full.
func fill(t *testing.T, c *net.UnixConn) {
	t.Helper()
	out, err := net.DialUnix("unixgram", nil, c.LocalAddr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	raw, err := out.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for range 100_000 {
		var full error
		if err := raw.Control(func(fd uintptr) { full = unix.Send(int(fd), []byte("full"), unix.MSG_DONTWAIT) }); err != nil {
			t.Fatal(err)
		}
		if full == unix.EAGAIN {
			return
		}
		if full != nil {
			t.Fatal(full)
		}
	}
	t.Fatal("the socket takes any number of messages")
}

// read returns the next message that fill did not send.
func read(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	buf := make([]byte, 4096)
	for {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("no message: %v", err)
		}
		if s := string(buf[:n]); s != "full" {
			return s
		}
	}
}

// A manager that does not read its socket delays nothing. When it reads again, it gets the
// state and the newest status.
func TestSocketThatNobodyReads(t *testing.T) {
	c := listen(t)
	fill(t, c)
	begin := time.Now()
	Reloading()
	for i := range 1000 {
		Status(fmt.Sprint("status ", i))
		Alive()
		Starting(time.Second)
	}
	Ready("done")
	if took := time.Since(begin); took > attempt {
		t.Errorf("3,002 messages took %v", took)
	}
	begin = time.Now()
	Stopping()
	if took := time.Since(begin); took > 5*flushFor {
		t.Errorf("the last message held the end up for %v", took)
	}
	var got []string
	for len(got) == 0 || !strings.HasPrefix(got[len(got)-1], "STOPPING=1") {
		got = append(got, read(t, c))
	}
	all := strings.Join(got, "|")
	if !strings.Contains(all, "RELOADING=1") || !strings.Contains(all, "READY=1\nSTATUS=done") || strings.Index(all, "RELOADING=1") > strings.Index(all, "READY=1") {
		t.Errorf("the manager was told %q", got)
	}
	if len(got) > 10 {
		t.Errorf("%d messages waited", len(got))
	}
}

// A manager that reads gets all messages in order.
func TestSocketThatIsRead(t *testing.T) {
	c := listen(t)
	for _, m := range []struct {
		send func()
		want string
	}{
		{func() { Starting(time.Second) }, "EXTEND_TIMEOUT_USEC=1000000"},
		{func() { Ready("a\nb") }, "READY=1\nSTATUS=a; b"},
		{Alive, "WATCHDOG=1"},
		{func() { Status("x") }, "STATUS=x"},
		{Reloading, "RELOADING=1\nMONOTONIC_USEC="},
		{func() { Ready("y") }, "READY=1\nSTATUS=y"},
		{Stopping, "STOPPING=1"},
	} {
		m.send()
		if got := read(t, c); !strings.HasPrefix(got, m.want) {
			t.Errorf("the manager was told %q, want %q", got, m.want)
		}
	}
}

// Without a manager nothing waits and nothing is queued.
func TestNoSocket(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	Ready("x")
	Stopping()
	manager.mu.Lock()
	defer manager.mu.Unlock()
	if len(manager.waiting) != 0 {
		t.Errorf("%v", manager.waiting)
	}
}
