package install

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// slowReader is the process name of the program that reads a slow disk.
const slowReader = "slow-reads"

// causeSteadily causes one thing repeatedly at a steady rate. It prints "caused N",
// and "perhaps N" for occurrences that it cannot decide.
func causeSteadily(what string, seconds, perSecond int, args []string) error {
	s := steady{end: time.Now().Add(time.Duration(seconds) * time.Second), each: time.Second / time.Duration(perSecond), args: args}
	causes := map[string]func(*steady) error{
		"datagrams":  (*steady).datagrams,
		"exchange":   (*steady).exchange,
		"knock":      (*steady).knock,
		"refused":    (*steady).refused,
		"abort":      (*steady).aborts,
		"stray":      (*steady).stray,
		"unanswered": (*steady).unanswered,
		"readlate":   (*steady).readLate,
		"sendlate":   (*steady).sendLate,
		"readslowly": (*steady).readSlowly,
	}
	f := causes[what]
	if f == nil {
		return fmt.Errorf("%q is not known", what)
	}
	err := f(&s)
	fmt.Println("caused", s.caused.Load())
	fmt.Println("perhaps", s.perhaps.Load())
	return err
}

type steady struct {
	end             time.Time
	each            time.Duration
	args            []string
	caused, perhaps atomic.Int64
}

// pace calls f at a steady rate until the time is over. It does not catch up on
// calls that an overloaded machine delays.
func (s *steady) pace(f func() error) error {
	for next := time.Now(); time.Now().Before(s.end); next = next.Add(s.each) {
		if late := time.Since(next); late > 0 {
			next = next.Add(late)
		}
		time.Sleep(time.Until(next))
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// counted is pace for an f that causes one occurrence per call.
func (s *steady) counted(f func() error) error {
	return s.pace(func() error {
		err := f()
		if err == nil {
			s.caused.Add(1)
		}
		return err
	})
}

// datagrams sends from an unconnected socket, so that ICMP errors do not make a
// send fail.
func (s *steady) datagrams() error {
	to, err := net.ResolveUDPAddr("udp", s.args[0])
	if err != nil {
		return err
	}
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 100)
	return s.counted(func() error {
		_, err := c.WriteToUDP(b, to)
		return err
	})
}

// exchange sends requests to servers, each over one connection, and over a new one
// if an answer takes too long.
func (s *steady) exchange() error {
	var all sync.WaitGroup
	errs := make([]error, len(s.args))
	for i, addr := range s.args {
		all.Go(func() {
			var c net.Conn
			errs[i] = s.pace(func() (err error) {
				if c == nil {
					if c, err = net.Dial("tcp", addr); err != nil {
						return err
					}
				}
				if err := echo(c); err != nil {
					c.Close()
					c = nil
					return nil
				}
				s.caused.Add(1)
				return nil
			})
			if c != nil {
				c.Close()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// knock tries to connect to a server that may refuse.
func (s *steady) knock() error {
	return s.counted(func() error {
		if c, err := net.DialTimeout("tcp", s.args[0], 2*time.Second); err == nil {
			c.Close()
		}
		return nil
	})
}

func (s *steady) refused() error {
	return s.counted(func() error { return causeRefused(s.args[0], 1) })
}

func (s *steady) aborts() error {
	return s.counted(func() error { return causeAborts(s.args[0], 1) })
}

func (s *steady) stray() error {
	return s.counted(func() error { return causeStray(s.args[0], 1) })
}

// unanswered starts connections and holds them, unanswered, until the end.
func (s *steady) unanswered() error {
	var waiting sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	err := s.pace(func() error {
		s.caused.Add(1)
		waiting.Go(func() {
			if err := causeUnanswered(max(time.Until(s.end), time.Millisecond), s.args); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
		return nil
	})
	waiting.Wait()
	return errors.Join(append(errs, err)...)
}

// pairs calls f at a steady rate, each time with a connection within this process
// that no other call uses, and waits for all calls. setUp prepares a new
// connection.
func (s *steady) pairs(setUp func(client, server *net.TCPConn) error, f func(client, server *net.TCPConn) error) error {
	type both struct{ client, server *net.TCPConn }
	idle := make(chan both, 64)
	done := make(chan error, 1024)
	begun := 0
	err := s.pace(func() error {
		var p both
		select {
		case p = <-idle:
		default:
			var err error
			// Connections of one server have the same port, so they are one kind.
			if p.client, p.server, err = pair("tcp4", "127.0.0.1:8080"); err != nil {
				return err
			}
			if err := setUp(p.client, p.server); err != nil {
				return err
			}
		}
		begun++
		go func() {
			err := f(p.client, p.server)
			if err == nil {
				s.caused.Add(1)
			}
			idle <- p
			done <- err
		}()
		return nil
	})
	errs := []error{err}
	for range begun {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}

func (s *steady) readLate() error {
	return s.pairs(func(_, _ *net.TCPConn) error { return nil }, lateRead)
}

func (s *steady) sendLate() error { return s.pairs(closeWindow, lateSend) }

// readSlowly reads a block device block by block, bypassing all caches. The device,
// which should take some 250 ms per block, sets the pace.
func (s *steady) readSlowly() error {
	runtime.LockOSThread()
	name := append([]byte(slowReader), 0)
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
		return err
	}
	f, b, err := openPastCaches(s.args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	for i := int64(0); time.Now().Before(s.end); i++ {
		start := time.Now()
		if _, err := f.ReadAt(b, i<<16%size); err != nil {
			return err
		}
		// A call takes at least as long as its block I/O, and longer on an
		// overloaded machine.
		switch took := time.Since(start); {
		case took > 180*time.Millisecond:
			s.caused.Add(1)
		case took > 95*time.Millisecond:
			s.perhaps.Add(1)
		}
	}
	return nil
}

// deaf receives datagrams and never reads them.
func deaf(addr string) error {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	if err := c.(*net.UDPConn).SetReadBuffer(1); err != nil { // the kernel raises this to its minimum
		return err
	}
	return unix.Pause()
}

// full listens with the shortest queue and accepts no connection.
func full(addr string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}), unix.Listen(fd, 1)); err != nil {
		return err
	}
	return unix.Pause()
}
