package output

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/event"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/quote"
)

// DefaultJournalSocket is journald's socket for native entries.
const DefaultJournalSocket = "/run/systemd/journal/socket"

// JournalOptions are the settings of a Journal. The zero value suits a machine with
// systemd.
type JournalOptions struct {
	// Path is journald's socket; "" is DefaultJournalSocket.
	Path string
	// Queue is how many events can wait while journald does not read; 0 is 4096.
	Queue int
	// SendBuffer is the size of the socket's send buffer in bytes; 0 is 8 MiB.
	SendBuffer int
	// Log gets a line when writing works again after a failure; nil: no log.
	Log *slog.Logger
}

const (
	defaultQueue      = 4096
	defaultSendBuffer = 8 << 20

	// writeWait limits one write. If it expires, a new connection is made: journald may
	// have been replaced.
	writeWait = time.Second

	minRedial = 50 * time.Millisecond
	maxRedial = 5 * time.Second

	// maxAttempts is how often an event is tried, each time on a new connection, before it
	// is dropped. An absent journald does not count as an attempt.
	maxAttempts = 3

	// maxKept is the maximum memory in bytes that the encoder keeps between events.
	maxKept = 1 << 20

	// shortStack is how many lines of a stack are kept if the event is too large for the
	// socket.
	shortStack = 16
)

// Journal writes events to systemd's journal by its native protocol. It is an event.Sink:
// one goroutine writes to one connected socket, and uses no CPU time while it waits.
// journald may be stopped, restarted or frozen; events that do not fit into the queue
// meanwhile are lost and counted.
//
// An event counts as written when it is in journald's socket; journald sends no
// acknowledgement. What a killed journald had not read is lost, unless systemd holds the
// socket open.
type Journal struct {
	eventQueue
	path       string
	sendBuffer int
	log        *slog.Logger
	enc        journalEncoder

	deadline time.Time // write deadline of conn; only the goroutine uses it
	redial   time.Duration
	broken   time.Time // when writing began to fail; zero while it works
	cause    error
	lostThen uint64
	panicked bool // a panic has been logged

	connMu sync.Mutex // conn is also used by Close
	conn   *net.UnixConn
}

var _ event.Sink = (*Journal)(nil)

// NewJournal starts a Journal. If journald is absent, the Journal waits for it.
func NewJournal(opt JournalOptions) *Journal {
	j := &Journal{path: opt.Path, sendBuffer: opt.SendBuffer, log: opt.Log}
	if j.path == "" {
		j.path = DefaultJournalSocket
	}
	if j.sendBuffer <= 0 {
		j.sendBuffer = defaultSendBuffer
	}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	if opt.Queue <= 0 {
		opt.Queue = defaultQueue
	}
	j.enc.init()
	j.eventQueue.init(opt.Queue)
	go j.run()
	return j
}

// JournalAvailable returns why journald cannot be reached at path ("" is
// DefaultJournalSocket); nil if it can. It does not notice a frozen journald.
func JournalAvailable(path string) error {
	if path == "" {
		path = DefaultJournalSocket
	}
	c, err := dialJournal(path)
	if err != nil {
		return err
	}
	return c.Close()
}

func dialJournal(path string) (*net.UnixConn, error) {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		return c, nil
	}
	hint := ""
	switch {
	case errors.Is(err, unix.ENOENT):
		hint = " (no journald here? In a container, mount the host's /run/systemd/journal)"
	case errors.Is(err, unix.ECONNREFUSED):
		hint = " (journald does not run: systemctl status systemd-journald)"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		hint = " (the socket may be written by everybody; is a folder above it closed, or does SELinux or AppArmor refuse?)"
	}
	return nil, fmt.Errorf("connect to journald's socket %s: %w%s", path, innermost(err), hint)
}

// innermost strips package net's wrapping from a kernel error.
func innermost(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// Close writes the queued events until ctx ends; the others are lost.
func (j *Journal) Close(ctx context.Context) error {
	return j.close(ctx, "the journal", func() {
		j.connMu.Lock()
		defer j.connMu.Unlock()
		if j.conn != nil {
			_ = j.conn.SetWriteDeadline(time.Unix(1, 0))
		}
	})
}

func (j *Journal) run() {
	defer close(j.ended)
	defer j.hangUp()
	for e := j.take(); e != nil; e = j.take() {
		written := false
		if err := bounded.Guard(func() { written = j.write(e) }); err != nil {
			j.hangUp()
			if !j.panicked {
				j.panicked = true
				j.log.Error("an event could not be written to the journal and is lost", "event", e.Type.Name, "error", err)
			}
		}
		if j.killed() && !written {
			return
		}
		if written {
			j.finish(1)
		} else {
			j.finish(0)
		}
		j.enc.shrink()
	}
}

// write writes one event, and retries without a time limit. It returns false if the event
// cannot be written or the Journal was killed.
func (j *Journal) write(e *event.Event) bool {
	j.enc.encode(e, false)
	short, file := false, false
	for attempt := 0; !j.killed(); {
		err := j.connect()
		if err == nil {
			if file {
				err = j.sendFile()
			} else {
				err = j.send()
			}
		}
		switch {
		case err == nil:
			j.works()
			return true
		case errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.ENOBUFS):
			switch {
			case !short && len(e.Stack) > shortStack:
				short = true
				j.enc.encode(e, true)
			case !file:
				file = true
			default:
				j.fails(err)
				return false
			}
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			if j.killed() {
				return false
			}
			j.fails(fmt.Errorf("journald does not read its socket %s", j.path))
			j.hangUp()
			continue
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ENOENT),
			errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
			// journald may come back.
		default:
			if attempt++; attempt >= maxAttempts {
				j.fails(err)
				j.hangUp()
				return false
			}
		}
		j.fails(err)
		j.hangUp()
		j.pause()
	}
	return false
}

// connect opens the connection if there is none.
func (j *Journal) connect() error {
	if j.conn != nil {
		return nil
	}
	c, err := dialJournal(j.path)
	if err != nil {
		return err
	}
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			// SO_SNDBUFFORCE may exceed net.core.wmem_max, but needs CAP_NET_ADMIN.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, j.sendBuffer) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, j.sendBuffer)
			}
		})
	}
	j.connMu.Lock()
	j.conn, j.deadline = c, time.Time{}
	j.connMu.Unlock()
	return nil
}

func (j *Journal) hangUp() {
	j.connMu.Lock()
	defer j.connMu.Unlock()
	if j.conn != nil {
		_ = j.conn.Close()
		j.conn = nil
	}
}

// arm limits the next write to between writeWait and an eighth more, so that the deadline
// need not be set for each event.
func (j *Journal) arm() error {
	now := time.Now()
	if j.deadline.Sub(now) < writeWait {
		j.deadline = now.Add(writeWait + writeWait/8)
		if err := j.conn.SetWriteDeadline(j.deadline); err != nil {
			return err
		}
	}
	if j.killed() { // check after setting the deadline: Close does the two in the opposite order
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (j *Journal) send() error {
	if err := j.arm(); err != nil {
		return err
	}
	_, err := j.conn.Write(j.enc.buf)
	return err
}

// sendFile sends an event that is too large for the socket as a sealed memfd.
func (j *Journal) sendFile() error {
	if err := j.arm(); err != nil {
		return err
	}
	f, err := sealedFile(j.enc.buf)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := j.conn.SyscallConn()
	if err != nil {
		return err
	}
	rights := unix.UnixRights(int(f.Fd()))
	var sendErr error
	if err := raw.Write(func(fd uintptr) bool {
		for {
			if sendErr = unix.Sendmsg(int(fd), nil, rights, nil, unix.MSG_NOSIGNAL); sendErr != unix.EINTR {
				return sendErr != unix.EAGAIN
			}
		}
	}); err != nil {
		return err
	}
	return sendErr
}

// sealedFile returns a sealed memfd with data.
func sealedFile(data []byte) (*os.File, error) {
	const name = "nodeskoop-event"
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // Linux before 6.3
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("make a file in memory for an event of %d bytes: %w", len(data), err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, fmt.Errorf("write an event of %d bytes to a file in memory: %w", len(data), innermost(err))
	}
	seals := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal a file in memory: %w", err)
	}
	return f, nil
}

// pause waits before the next attempt, twice as long each time.
func (j *Journal) pause() {
	j.redial = min(max(2*j.redial, minRedial), maxRedial)
	t := time.NewTimer(j.redial)
	defer t.Stop()
	select {
	case <-t.C:
	case <-j.kill:
	}
}

// fails records that writing fails. It does not log yet: standard error may go to the same
// journald.
func (j *Journal) fails(err error) {
	if j.broken.IsZero() {
		j.broken, j.cause, j.lostThen = time.Now(), err, j.lost()
	}
}

// works records that an event was written, and logs that writing works again.
func (j *Journal) works() {
	j.redial = 0
	if j.broken.IsZero() {
		return
	}
	j.log.Warn("events are written to the journal again", "after", time.Since(j.broken).Round(time.Millisecond),
		"lost", j.lost()-j.lostThen, "cause", j.cause)
	j.broken = time.Time{}
}

func (j *Journal) lost() (n uint64) {
	for i := range j.counts {
		n += j.counts[i].lost.Load()
	}
	return n
}

// journalEncoder makes entries of the native protocol. A field is NAME=value and a newline,
// or, if the value has newlines, NAME, a newline, the value's length (64 bits,
// little-endian), the value and a newline. Only a stack has newlines. journalctl -F and -o
// cat print a field as stored, so every value is stored as quote.AppendSafe writes it.
type journalEncoder struct {
	buf     []byte
	scratch []byte
	put     func(name string, value []byte)
	short   bool
}

func (c *journalEncoder) init() { c.put = c.field }

// shrink frees buffers that only a huge event needed.
func (c *journalEncoder) shrink() {
	if cap(c.buf)+cap(c.scratch) > maxKept {
		c.buf, c.scratch = nil, nil
	}
}

// encode encodes e in c.buf. With short it cuts the stack.
func (c *journalEncoder) encode(e *event.Event, short bool) {
	c.buf, c.short = c.buf[:0], short
	c.scratch = e.Fields(c.scratch, c.put)
}

func (c *journalEncoder) field(name string, value []byte) {
	if !validField(name) {
		return // journald drops the field, or for some bad names the whole entry
	}
	if name == "KUBESKOOP_STACK" && bytes.IndexByte(value, '\n') >= 0 {
		if c.short {
			value = firstLines(value, shortStack)
		}
		c.lines(name, value)
		return
	}
	c.buf = append(c.buf, name...)
	c.buf = append(c.buf, '=')
	c.buf = appendSafe(c.buf, value)
	c.buf = append(c.buf, '\n')
}

// lines appends a field whose value has several lines.
func (c *journalEncoder) lines(name string, value []byte) {
	c.buf = append(c.buf, name...)
	c.buf = append(c.buf, '\n')
	at := len(c.buf)
	c.buf = binary.LittleEndian.AppendUint64(c.buf, 0)
	for more := true; more; {
		var line []byte
		line, value, more = bytes.Cut(value, []byte{'\n'})
		c.buf = appendSafe(c.buf, line)
		if more {
			c.buf = append(c.buf, '\n')
		}
	}
	binary.LittleEndian.PutUint64(c.buf[at:], uint64(len(c.buf)-at-8))
	c.buf = append(c.buf, '\n')
}

// appendSafe is quote.AppendSafe, without an allocation for plain ASCII.
func appendSafe(b, value []byte) []byte {
	for _, c := range value {
		if c < ' ' || c >= 0x7f {
			return quote.AppendSafe(b, string(value))
		}
	}
	return append(b, value...)
}

// validField reports whether journald accepts a field name: up to 64 capitals, digits and
// underscores, a capital first.
func validField(name string) bool {
	if name == "" || len(name) > 64 || name[0] < 'A' || name[0] > 'Z' {
		return false
	}
	for i := 1; i < len(name); i++ {
		if c := name[i]; (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

func firstLines(b []byte, n int) []byte {
	end := 0
	for ; n > 0; n-- {
		i := bytes.IndexByte(b[end:], '\n')
		if i < 0 {
			return b
		}
		end += i + 1
	}
	return b[:end-1]
}
