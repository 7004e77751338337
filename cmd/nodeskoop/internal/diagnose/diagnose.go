// Package diagnose observes a node and its pods for some seconds and names the
// causes of trouble. It records the state at two moments and the events in between,
// derives signals from them, and evaluates the catalogue's causes.
package diagnose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// Report is what diagnose found.
type Report struct {
	Version   string      `json:"version"`
	Begin     time.Time   `json:"begin"`
	Seconds   float64     `json:"seconds"`
	Pods      int         `json:"pods"`
	Findings  []Finding   `json:"findings"`
	NotLooked []NotLooked `json:"not_looked"`

	only []string // the requested pods, or Node; none: all
}

// Limits on calls that may hang in the kernel.
const (
	netnsWithin = 5 * time.Second
	groupWithin = 3 * time.Second
	readers     = 4 // number of namespaces that are read at the same time
)

// target is a network namespace to examine.
type target struct {
	name  string
	path  string
	inode uint64
	pod   *owner.Pod // nil for the node
}

// Doctor examines a node.
type Doctor struct {
	session *session.Session
	watcher *watcher
	failed  map[string]string // what could not be examined, and why
}

// New makes a Doctor; end releases it.
func New(ctx context.Context, s *session.Session) (d *Doctor, end func(), err error) {
	w, end, err := newWatcher(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	return &Doctor{session: s, watcher: w, failed: map[string]string{}}, end, nil
}

// Running returns the pods that run now.
func (d *Doctor) Running() []*owner.Pod { return d.watcher.pods.Running() }

// Named is why pods have no names, nil while containerd answers.
func (d *Doctor) Named() error { return d.watcher.status() }

// Names are the names of the running pods that a filter selects, as used in
// findings.
func (d *Doctor) Names(filter session.Filter) (names []string) {
	if filter.WantsPod(true, "", "") {
		names = append(names, Node)
	}
	for _, p := range d.Running() {
		if filter.WantsPod(false, p.Namespace, p.Name) && !slices.Contains(names, nameOfPod(p)) {
			names = append(names, nameOfPod(p))
		}
	}
	return names
}

// Look observes for some time and returns its findings. If only is not empty, it leaves
// out findings that concern none of the ends in only. It calls begun when the observation begins.
func (d *Doctor) Look(ctx context.Context, took time.Duration, only []string, begun func()) (*Report, error) {
	d.watcher.runner.Until(ctx)
	d.watcher.sample() // loads the probes
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	begun()
	r := &recording{pods: map[netip.Addr]string{}, nodes: map[netip.Addr]bool{}}
	names, stop := context.WithCancel(ctx)
	defer stop()
	dns, err := watchDNS(names, d.session.Host.NetnsFile())
	if err != nil {
		d.fail("lookups of DNS", err)
	}
	r.before = d.moment(false)
	for i := range looksBetween + 1 {
		select {
		case <-time.After(took*time.Duration(i+1)/(looksBetween+1) - time.Since(r.before.at)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if i < looksBetween {
			r.middle = append(r.middle, d.connections())
		}
	}
	r.after = d.moment(true)
	r.after.values = d.watcher.sample()
	if stop(); dns != nil {
		r.lookups = dns.end()
	}
	if r.before.netns[Node] == nil || r.after.netns[Node] == nil {
		return nil, fmt.Errorf("look at the node's network namespace %s: %s", d.session.Host.NetnsFile(), d.failed["the network namespace of the node"])
	}
	r.events, r.left = d.watcher.seen.since(r.before.at)
	r.resetsUnseen = d.watcher.limited("tcpreset")
	r.descriptors = d.descriptors()
	d.addresses(r)
	d.nat(r)
	observed := observe(r)
	report := &Report{Version: d.session.Version, Begin: r.before.at, Seconds: r.took().Seconds(), Pods: len(d.Running()), Findings: evaluate(observed, r.took()), only: only}
	if len(only) > 0 {
		report.Findings = slices.DeleteFunc(report.Findings, func(f Finding) bool { return !slices.ContainsFunc(only, f.concerns) })
	}
	d.fillNext(report.Findings)
	report.NotLooked = d.notLooked(r)
	for _, x := range observed {
		d.session.Log.Debug("observed", "signal", x.signal, "owner", x.owner, "peer", x.peer, "value", x.value, "what", x.what)
	}
	return report, nil
}

// concerns reports whether a finding involves an end, or blames the node alone.
func (f *Finding) concerns(name string) bool {
	return f.parties[name] || f.Blame == Node && len(f.parties) == 1
}

// fail records what cannot be examined. If called again for the same subject, the
// first reason stays.
func (d *Doctor) fail(what string, err error) {
	if d.failed[what] == "" {
		d.failed[what] = firstLine(err)
	}
}

func firstLine(err error) string {
	first, _, _ := strings.Cut(err.Error(), "\n")
	return first
}

func (d *Doctor) targets() []target {
	list := []target{{name: Node, path: d.session.Host.NetnsFile()}}
	for _, p := range d.Running() {
		if p.HostNetwork || p.Netns == 0 {
			continue
		}
		path := p.NetnsPath
		if path == "" && len(p.PIDs) > 0 {
			path = "/proc/" + strconv.Itoa(p.PIDs[0]) + "/ns/net"
		}
		if path != "" {
			list = append(list, target{nameOfPod(p), path, p.Netns, p})
		}
	}
	return list
}

// moment reads the state of the node and all pods. whole also reads state that no
// counter depends on. The probes are sampled before the first moment, and by the
// caller after the second, so that their counts cover the moments and every event
// in between.
func (d *Doctor) moment(whole bool) moment {
	m := moment{at: time.Now(), netns: map[string]*netnsState{}, groups: map[string]groupState{}, ids: map[string]string{}}
	if !whole {
		m.values = d.watcher.sample()
		m.at = time.Now()
	}
	var err error
	if m.node, err = bounded.Within(netnsWithin, func() (*nodeState, error) { return readNode(), nil }); err != nil {
		d.fail("the node's CPUs, disks and memory", err)
	} else {
		for part, err := range m.node.failed {
			d.fail(part, err)
		}
	}
	var mounts map[string]string
	if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		mounts = groupMounts(b)
	} else {
		d.fail("control groups", err)
	}
	type result struct {
		target
		state    *netnsState
		group    groupState
		err      error
		groupErr error
	}
	results := each(d.targets(), func(t target) result {
		res := result{target: t}
		res.state, res.err = inside(t, func() (*netnsState, error) { return readNetns(whole, d.session.Host.NetnsFile()), nil })
		if t.pod != nil {
			res.group, res.groupErr = bounded.Within(groupWithin, func() (groupState, error) { return readGroups(mounts, t.pod.PIDs) })
		}
		return res
	})
	for _, res := range results {
		if res.err != nil {
			d.fail("the network namespace of "+nameText(res.name), res.err)
			continue
		}
		m.netns[res.name] = res.state
		for part, err := range res.state.failed {
			d.fail(part+" of "+nameText(res.name), err)
		}
		if res.pod == nil {
			continue
		}
		m.ids[res.name] = res.pod.ID
		if res.groupErr != nil {
			d.fail("the control groups of "+res.name, res.groupErr)
			continue
		}
		m.groups[res.name] = res.group
	}
	return m
}

// looksBetween is how often connections are read between the two moments, to
// distinguish lasting states from passing ones.
const looksBetween = 2

// connections returns the connections of the node and of all pods.
func (d *Doctor) connections() map[string][]socket {
	type result struct {
		name string
		list []socket
	}
	out := map[string][]socket{}
	for _, r := range each(d.targets(), func(t target) result {
		list, err := inside(t, func() ([]socket, error) {
			var s netnsState
			err := s.readSockets()
			return s.sockets, err
		})
		if err != nil {
			return result{} // the moment at the end reports the error
		}
		return result{t.name, list}
	}) {
		if r.name != "" {
			out[r.name] = r.list
		}
	}
	return out
}

// inside calls f in the network namespace of a target, and waits for at most
// netnsWithin.
func inside[T any](t target, f func() (T, error)) (T, error) {
	return bounded.Within(netnsWithin, func() (v T, err error) {
		inner := kernel.InNetns(t.path, t.inode, func() error {
			v, err = f()
			return nil
		})
		return v, errors.Join(inner, err)
	})
}

// each calls f with each target, several at a time.
func each[T any](targets []target, f func(target) T) []T {
	out := make([]T, len(targets))
	todo := make(chan int, len(targets))
	for i := range targets {
		todo <- i
	}
	close(todo)
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for i := range todo {
				out[i] = f(targets[i])
			}
		})
	}
	wg.Wait()
	return out
}

// descriptors reads how close the pods' processes are to their descriptor limit.
func (d *Doctor) descriptors() map[string]descriptors {
	out := map[string]descriptors{}
	for _, p := range d.Running() {
		if p.HostNetwork {
			continue
		}
		got, err := bounded.Within(groupWithin, func() (descriptors, error) {
			pids, err := d.watcher.pods.Processes(p, nil)
			return readDescriptors(pids), err
		})
		if err != nil {
			d.fail("the descriptors of "+nameOfPod(p), err)
			continue
		}
		out[nameOfPod(p)] = got
	}
	return out
}

// addresses notes whose addresses are known.
func (d *Doctor) addresses(r *recording) {
	if node := r.after.netns[Node]; node != nil {
		for _, a := range node.addrs {
			r.nodes[a.addr] = true
		}
	}
	for _, p := range d.Running() {
		if p.HostNetwork {
			continue
		}
		for _, a := range p.Addrs {
			r.pods[a] = nameOfPod(p)
		}
	}
}

// mostTracked is the maximum number of conntrack entries that are listed. Listing
// more takes too long.
const mostTracked = 300_000

// nat counts the ports that NAT uses. It lists the conntrack table, and only if
// conntrack could not insert connections.
func (d *Doctor) nat(r *recording) {
	r.nat = map[string]natPorts{}
	for _, t := range d.targets() {
		v := rises(r.before.values[t.name], r.after.values[t.name])
		hook := slices.ContainsFunc(r.events, func(e occurrence) bool {
			return e.typ == "PacketLoss" && e.owner == t.name && e.function == hookFunction
		})
		if v["kubeskoop_conntrack_insertfailed"] == 0 && v["kubeskoop_conntrack_drop"] == 0 && !hook || v["kubeskoop_conntrack_entries"] == 0 {
			continue
		}
		if v["kubeskoop_conntrack_entries"] > mostTracked {
			d.fail("the ports of NAT of "+nameText(t.name), fmt.Errorf("conntrack has more than %d entries", mostTracked))
			continue
		}
		n, err := inside(t, readNAT)
		if err != nil {
			d.fail("the ports of NAT of "+nameText(t.name), err)
			continue
		}
		r.nat[t.name] = n
		d.session.Log.Debug("ports of NAT", "owner", t.name, "used", n.used, "room", n.room, "to", n.to)
	}
}

// readNAT lists the connections tracked in the thread's namespace.
func readNAT() (natPorts, error) {
	var flows []*netlink.ConntrackFlow
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return natPorts{}, fmt.Errorf("list the connections of conntrack: %w", err)
		}
		flows = append(flows, list...)
	}
	return usedPorts(flows), nil
}

// usedPorts finds the destination for which NAT uses the longest run of consecutive
// ports: in an exhausted range, all ports are used. The range itself is part of a rule
// and not known. Other rules may have used other ports to the same destination.
func usedPorts(flows []*netlink.ConntrackFlow) (most natPorts) {
	type to struct {
		proto     uint8
		nat, addr netip.Addr
		port      uint16
	}
	ports := map[to]map[uint16]bool{}
	for _, f := range flows {
		nat, was := addrOf(f.Reverse.DstIP), addrOf(f.Forward.SrcIP)
		if nat == was && f.Reverse.DstPort == f.Forward.SrcPort {
			continue // NAT has not changed the source
		}
		k := to{f.Forward.Protocol, nat, addrOf(f.Reverse.SrcIP), f.Reverse.SrcPort}
		if ports[k] == nil {
			ports[k] = map[uint16]bool{}
		}
		ports[k][f.Reverse.DstPort] = true
	}
	for k, used := range ports {
		all := slices.Sorted(maps.Keys(used))
		for begin, i := 0, 1; i <= len(all); i++ {
			if i < len(all) && all[i]-all[i-1] <= 2 {
				continue // a single free port in the run may have just been released
			}
			n := natPorts{used: float64(i - begin), room: float64(all[i-1]-all[begin]) + 1, to: netip.AddrPortFrom(k.addr, k.port).String()}
			if begin = i; n.used >= leastPorts && cmp.Or(cmp.Compare(n.used/n.room, most.used/max(most.room, 1)), cmp.Compare(n.used, most.used)) > 0 {
				most = n
			}
		}
	}
	return most
}

// leastPorts is the smallest plausible NAT range. Fewer connections may have
// consecutive ports by chance.
const leastPorts = 8

// fillNext completes the suggested commands with the process that they are about.
func (d *Doctor) fillNext(list []Finding) {
	pids, addrs := map[string]string{Node: "1"}, map[string]string{}
	for _, p := range d.Running() {
		if p.HostNetwork {
			continue
		}
		if len(p.PIDs) > 0 {
			pids[nameOfPod(p)] = strconv.Itoa(p.PIDs[0])
		}
		if len(p.Addrs) > 0 {
			addrs[nameOfPod(p)] = p.Addrs[0].String()
		}
	}
	fillNextWith(list, pids, addrs)
}

// fillNextWith is fillNext, given a process and an address of each pod.
func fillNextWith(list []Finding, pids, addrs map[string]string) {
	for i := range list {
		f := &list[i]
		pid := cmp.Or(pids[f.is.in], pids[f.Blame], pids[f.owner])
		peer := cmp.Or(addrs[f.peer], f.peer)
		for _, s := range f.about.Next {
			f.Next = append(f.Next, placed(s.Command, pid, peer, f.what)+shownBy+s.Shows)
		}
		for j := range f.Evidence {
			e := &f.Evidence[j]
			source, pid := e.Source, pids[e.of]
			if strings.Contains(source, "PEERPID") {
				source, pid = strings.ReplaceAll(source, "PEERPID", "PID"), pids[e.with]
			}
			e.Source = placed(source, pid, peer, f.what)
		}
	}
}

// shownBy separates a command from the description of its output, such that the
// line can be pasted.
const shownBy = "  # "

// notLooked lists what could not be examined.
func (d *Doctor) notLooked(r *recording) []NotLooked {
	list := append([]NotLooked{}, d.watcher.troubles()...)
	for what, why := range d.failed {
		list = append(list, NotLooked{what, why})
	}
	ofOwner := map[string]uint64{}
	for x, n := range r.left {
		ofOwner[x.owner] += n
	}
	for name, n := range ofOwner {
		list = append(list, NotLooked{"events of " + cmp.Or(nameText(name), "namespaces of no pod"), fmt.Sprintf("a rate limit suppressed %d of them: far more occurred than were seen", n)})
	}
	if r.after.node != nil && r.after.node.tcpMax == 0 && r.after.node.failed["memory of TCP"] == nil {
		list = append(list, NotLooked{"memory of TCP", "this process is not in the initial network namespace, which alone shows net.ipv4.tcp_mem"})
	}
	slices.SortFunc(list, func(a, b NotLooked) int { return strings.Compare(a.What, b.What) })
	return list
}
