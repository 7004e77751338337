package servers

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
)

var (
	wrkRequests = regexp.MustCompile(`(?m)^ *(\d+) requests in `)
	wrkRate     = regexp.MustCompile(`(?m)^Requests/sec: +([\d.]+)$`)
	wrkP99      = regexp.MustCompile(`(?m)^ *99% +([\d.]+(?:us|ms|s))$`)
	wrkBad      = regexp.MustCompile(`(?m)^ *(Non-2xx or 3xx responses|Socket errors): .*$`)
)

// parseWrk reads the report of wrk --latency.
func parseWrk(out string) (l load, err error) {
	if bad := wrkBad.FindString(out); bad != "" {
		return l, fmt.Errorf("wrk: %s", bad)
	}
	requests, rate, p99 := wrkRequests.FindStringSubmatch(out), wrkRate.FindStringSubmatch(out), wrkP99.FindStringSubmatch(out)
	if requests == nil || rate == nil || p99 == nil {
		return l, fmt.Errorf("the report of wrk has not all of requests, rate and 99th percentile:\n%s", out)
	}
	var errs [3]error
	l.operations, errs[0] = strconv.ParseFloat(requests[1], 64)
	l.rate, errs[1] = strconv.ParseFloat(rate[1], 64)
	l.p99, errs[2] = time.ParseDuration(p99[1])
	return l, errors.Join(errs[:]...)
}

// parseRedis reads the report of redis-benchmark --csv on n requests.
func parseRedis(out string, n int) (l load, err error) {
	at := strings.Index(out, `"test"`) // skip warnings
	if at < 0 {
		return l, fmt.Errorf("redis-benchmark printed no table:\n%s", out)
	}
	rows, err := csv.NewReader(strings.NewReader(out[at:])).ReadAll()
	if err != nil || len(rows) != 2 {
		return l, errors.Join(err, fmt.Errorf("the table of redis-benchmark has %d rows, not 2:\n%s", len(rows), out))
	}
	value := func(column string) float64 {
		i := slices.Index(rows[0], column)
		if i < 0 {
			err = errors.Join(err, fmt.Errorf("the table of redis-benchmark has no column %s:\n%s", column, out))
			return 0
		}
		v, e := strconv.ParseFloat(rows[1][i], 64)
		err = errors.Join(err, e)
		return v
	}
	l = load{operations: float64(n), rate: value("rps"), p99: time.Duration(value("p99_latency_ms") * 1e6)}
	return l, err
}

var pgbenchRate = regexp.MustCompile(`(?m)^tps = ([\d.]+) `)

// parsePgbench reads the report of pgbench, and its log of transactions, in which the
// third column is the latency in microseconds.
func parsePgbench(out, transactions string) (l load, err error) {
	rate := pgbenchRate.FindStringSubmatch(out)
	if rate == nil {
		return l, fmt.Errorf("the report of pgbench has no rate:\n%s", out)
	}
	if l.rate, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return l, err
	}
	var took []float64
	for line := range strings.Lines(transactions) {
		f := strings.Fields(line)
		if len(f) < 3 {
			return l, fmt.Errorf("pgbench's log of transactions: %q has no latency", line)
		}
		us, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			return l, fmt.Errorf("pgbench's log of transactions: %w", err)
		}
		took = append(took, us)
	}
	l.operations = float64(len(took))
	l.p99 = time.Duration(testkit.Quantile(took, 0.99) * 1e3)
	return l, nil
}

// repeat sends a request n times over Connections connections from this thread. Each
// connection waits for its answer before the next request.
func repeat(to unix.Sockaddr, request, answer []byte, n int) (l load, err error) {
	type connection struct {
		sent time.Time
		got  []byte
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return l, err
	}
	defer unix.Close(ep)
	connections := map[int32]*connection{}
	defer func() {
		for fd := range connections {
			_ = unix.Close(int(fd))
		}
	}()
	sent := 0
	send := func(fd int32) error {
		if sent == n {
			return nil
		}
		sent++
		connections[fd].sent, connections[fd].got = time.Now(), connections[fd].got[:0]
		k, err := unix.Write(int(fd), request)
		if err == nil && k < len(request) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return fmt.Errorf("send a request: %w", err)
		}
		return nil
	}
	for range Connections {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return l, err
		}
		connections[int32(fd)] = &connection{got: make([]byte, 0, 2*len(answer))}
		if err := errors.Join(unix.Connect(fd, to), unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1),
			unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})); err != nil {
			return l, fmt.Errorf("connect to a server: %w", err)
		}
	}
	took := make([]float64, 0, n)
	var ready [Connections]unix.EpollEvent
	cpu, start := testkit.ThreadCPU(), time.Now()
	for fd := range connections {
		if err := send(fd); err != nil {
			return l, err
		}
	}
	for len(took) < n {
		k, err := unix.EpollWait(ep, ready[:], int(testkit.Patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err == nil && k == 0 {
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			return l, fmt.Errorf("wait for %d answers: %w", n-len(took), err)
		}
		for _, e := range ready[:k] {
			c := connections[e.Fd]
			at := len(c.got)
			m, err := unix.Read(int(e.Fd), c.got[at:cap(c.got)])
			if err == nil && m == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return l, fmt.Errorf("read an answer: %w", err)
			}
			if c.got = c.got[:at+m]; len(c.got) < len(answer) {
				continue
			}
			if !bytes.Equal(c.got, answer) {
				return l, fmt.Errorf("the answer is %.60q, want %.60q", c.got, answer)
			}
			took = append(took, float64(time.Since(c.sent)))
			if err := send(e.Fd); err != nil {
				return l, err
			}
		}
	}
	return load{
		operations: float64(n), rate: float64(n) / time.Since(start).Seconds(),
		p99: time.Duration(testkit.Quantile(took, 0.99)), cpu: testkit.ThreadCPU() - cpu,
	}, nil
}
