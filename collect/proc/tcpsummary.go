package proc

import (
	"bytes"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/netlink"
	"nodeskoop/internal/kernel"
)

// tcpsummary counts TCP connections by state and sums their queues, over IPv4 and IPv6. It
// uses sock_diag, or /proc/PID/net/tcp and tcp6 if the kernel has no sock_diag
// (net/ipv4/tcp_ipv4.c, tcp4_seq_show).
//
// If many namespaces have connections, and the kernel permits it, a BPF program reads the
// connections of all of them once per cycle, which then costs less.
type tcpsummary struct {
	log              *slog.Logger
	established      *catalog.Metric
	timeWait         *catalog.Metric
	closeWait        *catalog.Metric
	synSent, synRecv *catalog.Metric
	txQueue, rxQueue *catalog.Metric

	counters *mib        // TCP's MIB counters
	textOnly atomic.Bool // this kernel has no sock_diag
	warn     sync.Once

	mu   sync.Mutex
	walk walk
}

// known is the state of one namespace.
type known struct {
	// The values before the last time that all connections were read.
	counters [maxMIB]uint64
	inuse    uint64
	timeWait uint64
	valid    bool // they are known

	sockets    netlink.TCPSockets
	remembered bool // sockets holds enough for AskTCP

	connections uint64 // in the last cycle
	table       table
}

func (t typeInfo) newTCPSummary(env collect.Env) (collect.Probe, error) {
	counters, err := newMIB("tcp", "snmp")
	if err != nil {
		return nil, err
	}
	return &tcpsummary{
		log:         env.Log,
		counters:    counters,
		established: catalog.MustMetric("kubeskoop_tcpsummary_tcpestablishedconn"),
		timeWait:    catalog.MustMetric("kubeskoop_tcpsummary_tcptimewaitconn"),
		closeWait:   catalog.MustMetric("kubeskoop_tcpsummary_tcpclosewaitconn"),
		synSent:     catalog.MustMetric("kubeskoop_tcpsummary_tcpsynsentconn"),
		synRecv:     catalog.MustMetric("kubeskoop_tcpsummary_tcpsynrecvconn"),
		txQueue:     catalog.MustMetric("kubeskoop_tcpsummary_tcptxqueue"),
		rxQueue:     catalog.MustMetric("kubeskoop_tcpsummary_tcprxqueue"),
		walk:        newWalk(env, t),
	}, nil
}

func (*tcpsummary) Granularity() collect.Granularity { return collect.EachNetns }

func (p *tcpsummary) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.walk.drop()
}

func (p *tcpsummary) Sample(v *collect.View) error {
	var t netlink.TCPTable
	if err := p.read(v, &t); err != nil {
		return err
	}
	v.Add(p.established, float64(t.States[netlink.TCPEstablished]))
	v.Add(p.timeWait, float64(t.States[netlink.TCPTimeWait]))
	v.Add(p.closeWait, float64(t.States[netlink.TCPCloseWait]))
	v.Add(p.synSent, float64(t.States[netlink.TCPSynSent]))
	v.Add(p.synRecv, float64(t.States[netlink.TCPSynRecv]))
	v.Add(p.txQueue, float64(t.TxQueue))
	v.Add(p.rxQueue, float64(t.RxQueue))
	return nil
}

// read gets the connections. The kernel keeps those of all namespaces in one table, and a
// dump of one namespace walks the whole table. So it dumps only if the set of connections
// may have changed, and not at all in a cycle in which walking once for all namespaces costs
// less.
func (p *tcpsummary) read(v *collect.View, t *netlink.TCPTable) error {
	s, err := readSockstat(v)
	if err != nil {
		return err
	}
	// Pending connection requests are not in these numbers, but their listening socket is.
	if s[sockInuse] == 0 && s[sockTW] == 0 {
		return nil
	}
	if p.textOnly.Load() {
		return readTCPText(v, t)
	}
	now := known{inuse: s[sockInuse], timeWait: s[sockTW]}
	b, err := v.ReadNet(p.counters.file)
	if err == nil {
		err = p.counters.parse(b, &now.counters)
	}
	if err != nil && !partial(err) {
		return err
	}
	now.valid = err == nil
	last := collect.State[known](v)
	still := last.still(&now)
	done, err := p.readAll(v, t, last, still)
	if done || err != nil && !partial(err) {
		last.remembered = false
		last.set(&now)
		return err
	}
	if still && last.remembered {
		err := netlink.AskTCP(v, t, &last.sockets)
		if err == nil || !partial(err) && !errors.Is(err, netlink.ErrNoSuchSocket) {
			return err
		}
	}
	err = p.list(v, t, last, &now)
	if err == nil || !partial(err) {
		return err
	}
	if errors.Is(err, netlink.ErrNoSockDiag) {
		p.textOnly.Store(true)
	}
	p.warn.Do(func() {
		p.log.Warn("sock_diag is not available; reading /proc/PID/net/tcp instead, which costs more", "error", err)
	})
	return readTCPText(v, t)
}

// list dumps all connections, and remembers them for AskTCP unless a pending request is
// among them, which may time out without changing any counter.
func (p *tcpsummary) list(v *collect.View, t *netlink.TCPTable, last, now *known) error {
	last.valid, last.remembered = false, false
	if err := netlink.ReadTCP(v, t, &last.sockets); err != nil {
		return err
	}
	last.set(now)
	last.remembered = last.sockets.Complete() && t.States[netlink.TCPSynRecv] == 0
	last.connections = t.Connections()
	return nil
}

// set takes over the values of now.
func (k *known) set(now *known) {
	k.counters, k.inuse, k.timeWait, k.valid = now.counters, now.inuse, now.timeWait, now.valid
}

// still reports whether the set of connections is unchanged. No connection appears without
// a segment in or out, and the Tcp MIB counts both, even if the network loses the segment.
// The states and queues may change without a segment; AskTCP reads them again.
func (k *known) still(now *known) bool {
	return k.valid && now.valid && k.counters == now.counters && k.inuse == now.inuse && k.timeWait == now.timeWait
}

func readTCPText(v *collect.View, t *netlink.TCPTable) error {
	*t = netlink.TCPTable{}
	b, err := v.ReadNet("tcp")
	if err != nil {
		return err
	}
	if err := parseTCP(t, "net/tcp", len("00000000"), b); err != nil {
		return err
	}
	b, err = readOptional(v, "tcp6")
	if b == nil || err != nil {
		return err
	}
	return parseTCP(t, "net/tcp6", 4*len("00000000"), b)
}

// parseTCP counts the sockets of one file, whose addresses have addr digits. After the line
// number, every field has a fixed position:
//
//	sl  local_address rem_address   st tx_queue:rx_queue ...
//	0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 ...
func parseTCP(t *netlink.TCPTable, file string, addr int, b []byte) error {
	l := kernel.Lines{File: file, Rest: b}
	header, ok, err := l.Next()
	if err != nil || !ok {
		return l.OrMissing(err, "the line of names is missing")
	}
	if name, _ := kernel.Field(header); string(name) != "sl" {
		return l.Errorf("%.40q does not name the columns", header)
	}
	// Offsets from the colon after the line number.
	local := 2
	remote := local + addr + 6
	state := remote + addr + 6
	tx := state + 3
	rx := tx + 9
	end := rx + 8
	for {
		line, ok, err := l.Next()
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 0 || len(line) < colon+end {
			return l.Errorf("%.60q is too short", line)
		}
		f := line[colon:]
		if f[local+addr] != ':' || f[remote-1] != ' ' || f[remote+addr] != ':' || f[state-1] != ' ' || f[tx-1] != ' ' || f[rx-1] != ':' ||
			len(f) > end && f[end] != ' ' {
			return l.Errorf("%.60q does not have its columns where they belong", line)
		}
		st, ok1 := kernel.Hex(f[state : state+2])
		txq, ok2 := kernel.Hex(f[tx : tx+8])
		rxq, ok3 := kernel.Hex(f[rx : rx+8])
		if !ok1 || !ok2 || !ok3 {
			return l.Errorf("the state %q or the queues %q are not hexadecimal numbers", f[state:state+2], f[tx:end])
		}
		if err := t.Add(uint8(st), uint32(rxq), uint32(txq)); err != nil {
			return l.Errorf("%v", err)
		}
	}
}
