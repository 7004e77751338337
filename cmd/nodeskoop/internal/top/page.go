package top

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"nodeskoop/collect/netlink"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// Limits of a page.
const (
	pageSockets   = 20_000 // maximum number of TCP sockets read
	pagePeers     = 20
	pageListeners = 20
	pageEvents    = 20
	pageProcesses = 50
	pageCauses    = 20
)

// page holds the details of one pod, or of the host. For missing parts it holds the
// error.
type page struct {
	name    podName
	at      time.Time
	begun   time.Time // start of counting
	columns []Column
	row     *row       // nil if the pod no longer has a row
	pod     *owner.Pod // nil for the host, or a pod that has ended
	reasons []reason
	// hostDrops is the number of drops on the host that hit packets of the pod,
	// with a + if there may be more.
	hostDrops string
	// lossErr is why drops are not counted, nil if they are.
	lossErr error
	kinds   []kind // most recent first
	more    bool   // further kinds occurred

	sockets    socketList
	socketErr  error
	processes  []process
	unlisted   int // number of processes beyond the list
	processErr error
}

// reason is a reason of drops.
type reason struct {
	name   string
	total  float64 // since the start of counting
	second float64 // rate in the last interval; negative if unknown
}

type process struct {
	pid  int
	name string
}

// socketList summarises the TCP sockets of a namespace.
type socketList struct {
	listeners []listener
	peers     []peer
	// Numbers of listeners and peers not listed.
	otherListeners, otherPeers int
	unseen                     int // number of sockets beyond pageSockets
}

// listener is a listening socket with its backlog and the limit of that.
type listener struct {
	addr             netip.AddrPort
	waiting, backlog uint32
}

// peer is the remote end of connections.
type peer struct {
	addr netip.Addr
	pod  string // name of its pod, "" if the address belongs to none here
	// port is the service's port: the peer's, or the pod's own if inbound.
	port        uint16
	inbound     bool
	connections int
	rx, tx      uint64
}

// Open makes the samples from now on include the page of a pod; nil for none.
func (s *Sampler) Open(name *podName) { s.open.Store(name) }

// again returns the last sample with the currently open page.
func (s *Sampler) again() *Table {
	name := s.open.Load()
	if s.table == nil || name == nil {
		return s.table
	}
	t := *s.table
	t.page = s.pageOf(*name)
	return &t
}

// pageOf creates the page of a pod.
func (s *Sampler) pageOf(name podName) *page {
	p := &page{name: name, at: time.Now(), begun: s.begun, columns: s.columns}
	sandbox := hostLabel
	if i := slices.IndexFunc(s.table.rows, func(r row) bool { return r.id() == name }); i >= 0 {
		r := s.table.rows[i]
		p.row, p.reasons = &r, r.reasons
	}
	for _, t := range s.table.troubles {
		if t.probe == "packetloss" && t.whole {
			p.lossErr = errors.New(t.text)
		}
	}
	if !slices.ContainsFunc(s.columns, func(c Column) bool { return c.probe == "packetloss" }) {
		p.lossErr = errors.New("the probe packetloss is not chosen: see --probe")
	}
	if name != hostName {
		for _, x := range s.pods.Running() {
			if x.Namespace == name.namespace && x.Name == name.pod && (p.pod == nil || x.Started.After(p.pod.Started)) {
				p.pod = x
			}
		}
		if p.pod == nil {
			p.socketErr = errors.New("the pod has ended")
			p.processErr = p.socketErr
			return p
		}
		sandbox = p.pod.ID
	}
	p.kinds, p.more = s.events.kindsOf(name, sandbox)
	if p.hostDrops = strconv.FormatUint(s.events.hostDropsOf(name, sandbox), 10); s.held > 0 {
		p.hostDrops += "+"
	}
	p.sockets, p.socketErr = s.readSockets(p.pod)
	for i := range p.sockets.peers {
		p.sockets.peers[i].pod = podAt(s.pods, p.sockets.peers[i].addr)
	}
	p.processes, p.unlisted, p.processErr = s.readProcesses(p.pod)
	return p
}

// socketsWithin limits how long the kernel may take to list a namespace's sockets,
// since a page waits for it.
const socketsWithin = time.Second

// processesWithin limits how long listing a pod's processes may take.
const processesWithin = time.Second

// readSockets lists the TCP sockets in the namespace of a pod, or of the host if p
// is nil.
func (s *Sampler) readSockets(p *owner.Pod) (socketList, error) {
	if s.sockets != nil && !s.sockets.Over(0, nil) {
		return socketList{}, s.sockets.Hangs("listing TCP sockets")
	}
	path, inode := s.files.netns, s.host
	if p != nil {
		path, inode = p.NetnsPath, p.Netns
		if path == "" && len(p.PIDs) > 0 {
			path = s.files.proc + "/" + strconv.Itoa(p.PIDs[0]) + "/ns/net"
		}
		if path == "" || inode == 0 {
			return socketList{}, errors.New("neither a process nor a file of the pod's network namespace is known")
		}
	}
	s.sockets = bounded.Begin(func() (l socketList, err error) {
		var all []netlink.TCPSocket
		total := 0
		err = kernel.InNetns(path, inode, func() (err error) {
			all, total, err = netlink.ListTCP(pageSockets)
			return err
		})
		if err != nil {
			return l, err
		}
		l = sumUp(all)
		l.unseen = total - len(all)
		return l, nil
	})
	if !s.sockets.Over(socketsWithin, nil) {
		return socketList{}, s.sockets.Hangs("listing TCP sockets")
	}
	return s.sockets.Value, s.sockets.Err
}

// sumUp groups connections by peer, ordered by queued bytes, then by number of
// connections.
func sumUp(all []netlink.TCPSocket) (l socketList) {
	listens := map[uint16]bool{}
	for _, s := range all {
		if s.State == netlink.TCPListen {
			listens[s.Local.Port()] = true
			l.listeners = append(l.listeners, listener{s.Local, s.RxQueue, s.TxQueue})
		}
	}
	type key struct {
		addr    netip.Addr
		port    uint16
		inbound bool
	}
	sums := map[key]*peer{}
	for _, s := range all {
		if s.State == netlink.TCPListen || s.State == netlink.TCPTimeWait {
			continue // not a connection, or a closed one
		}
		k := key{s.Remote.Addr(), s.Remote.Port(), false}
		if listens[s.Local.Port()] {
			k.port, k.inbound = s.Local.Port(), true
		}
		p := sums[k]
		if p == nil {
			p = &peer{addr: k.addr, port: k.port, inbound: k.inbound}
			sums[k] = p
		}
		p.connections++
		p.rx += uint64(s.RxQueue)
		p.tx += uint64(s.TxQueue)
	}
	for _, p := range sums {
		l.peers = append(l.peers, *p)
	}
	slices.SortFunc(l.peers, func(a, b peer) int {
		return cmp.Or(cmp.Compare(b.rx+b.tx, a.rx+a.tx), cmp.Compare(b.connections, a.connections), a.addr.Compare(b.addr), cmp.Compare(a.port, b.port))
	})
	slices.SortFunc(l.listeners, func(a, b listener) int {
		return cmp.Or(cmp.Compare(b.waiting, a.waiting), cmp.Compare(a.addr.Port(), b.addr.Port()), a.addr.Addr().Compare(b.addr.Addr()))
	})
	if n := len(l.listeners) - pageListeners; n > 0 {
		l.listeners, l.otherListeners = l.listeners[:pageListeners], n
	}
	if n := len(l.peers) - pagePeers; n > 0 {
		l.peers, l.otherPeers = l.peers[:pagePeers], n
	}
	return l
}

// readProcesses lists the processes of a pod. It does not list the host's.
func (s *Sampler) readProcesses(p *owner.Pod) (list []process, more int, err error) {
	if p == nil {
		return nil, 0, errors.New("the host's processes are all those outside pods: see ps")
	}
	type answer struct {
		pids []int
		err  error // part of the list may still be valid
	}
	a, err := bounded.Within(processesWithin, func() (a answer, _ error) {
		a.pids, a.err = s.pods.Processes(p, nil)
		return a, nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list the pod's processes: %w", err)
	}
	pids, err := a.pids, a.err
	slices.Sort(pids)
	pids = slices.Compact(pids)
	if more = len(pids) - pageProcesses; more > 0 {
		pids = pids[:pageProcesses]
	}
	for _, pid := range pids {
		name, e := os.ReadFile(s.files.proc + "/" + strconv.Itoa(pid) + "/comm")
		if errors.Is(e, os.ErrNotExist) {
			continue // the process has exited
		}
		if e != nil {
			err = cmp.Or(err, fmt.Errorf("read the name of process %d: %w", pid, e))
		}
		list = append(list, process{pid, string(bytes.TrimSuffix(name, []byte("\n")))})
	}
	return list, max(0, more), err
}

// reasonsOf compares the drops of a pod by reason in two samples. second is the
// interval in seconds; 0 means that there is no earlier sample.
func reasonsOf(now, last map[string]float64, second float64) (out []reason) {
	for _, name := range slices.Sorted(maps.Keys(now)) {
		r := reason{name, now[name], -1}
		if d := now[name] - last[name]; second > 0 && d >= 0 {
			r.second = d / second
		}
		if r.total > 0 {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b reason) int {
		return cmp.Or(cmp.Compare(b.second, a.second), cmp.Compare(b.total, a.total))
	})
	return out
}

// podAt returns the pod that owns an address, "" if none does.
func podAt(pods owner.Pods, a netip.Addr) string {
	if p := pods.ByAddr(a); p != nil && !p.HostNetwork {
		return p.Namespace + "/" + p.Name
	}
	return ""
}
