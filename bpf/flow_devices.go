package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// filterName is the prefix of our cls_bpf filters' names. The rest is the name of a
// lease, which shows whether the process that added the filter still runs.
const filterName = "nodeskoop_flow:"

// filterPriority is a low number, so that our filter runs before filters that end
// the chain. It is not the lowest, because other programs ask for low numbers
// explicitly.
const filterPriority = 77

// devices attaches a pair of programs to the egress of the devices in one network
// namespace: one for devices with an Ethernet header, one for those without.
type devices struct {
	patterns    []string
	netns       netns.NsHandle
	inode       uint64
	netlink     *netlink.Handle
	lease       lease
	kind        Kind
	frames      *ebpf.Program
	packets     *ebpf.Program
	held        map[int]*attachment // by index, since a name may pass to another device
	limitations []string            // result of the last scan
	closed      bool

	// mu is held during requests to the kernel about devices, which wait as long as
	// another program holds RTNL. It guards held, lacks and closed once the probe
	// is loaded.
	mu    sync.Mutex
	found atomic.Pointer[found]

	scanMu   sync.Mutex
	scanning chan struct{} // closed when the running scan ends
	since    time.Time     // start of the running scan
}

// found is the result of a scan.
type found struct {
	names       []string
	limitations string
}

// attachment is a program on one device.
type attachment struct {
	device string
	tcx    link.Link // nil for a filter
	made   bool      // we created the device's clsact
}

// newDevices opens a network namespace: that of file, or the calling thread's.
func newDevices(patterns []string, file string) (*devices, error) {
	for _, p := range patterns {
		if _, err := path.Match(p, "eth0"); err != nil || p == "" {
			return nil, fmt.Errorf("devices: %q is not a pattern of names; use * ? and [a-z] as in \"eth*\"", p)
		}
	}
	if file == "" {
		file = kernel.OwnNetns
	}
	fd, err := kernel.Open(unix.AT_FDCWD, file, 0)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of the devices, %s: %w", file, err)
	}
	d := &devices{patterns: patterns, netns: netns.NsHandle(fd), held: map[int]*attachment{}, lease: lease{fd: -1}}
	if d.inode, err = kernel.FileInode(fd); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("look at the network namespace %s: %w", file, err)
	}
	err = d.inside(func() error {
		if d.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open a netlink socket in the network namespace %s: %w", file, err)
		}
		d.lease, err = newLease()
		return err
	})
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// inside runs f on a thread in the devices' namespace. If the caller is already
// there, this needs no privileges.
func (d *devices) inside(f func() error) error {
	runtime.LockOSThread()
	if inode, err := kernel.Inode(kernel.OwnNetns); err == nil && inode == d.inode {
		defer runtime.UnlockOSThread()
		return f()
	}
	runtime.UnlockOSThread()
	return kernel.InNetnsFD(int(d.netns), f)
}

// start stores the programs and scans for the first time. It fails if this kind of
// hook works on no device.
func (d *devices) start(kind Kind, frames, packets *ebpf.Program) error {
	d.kind, d.frames, d.packets = kind, frames, packets
	first, err := d.scan()
	switch {
	case err != nil:
		return err
	case len(d.held) > 0:
		return nil
	case first != nil:
		return first
	case kind == TCX:
		// Without a matching device, test the kernel's support on the namespace's
		// loopback device.
		lo, err := d.netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("look for the device lo: %w", err)
		}
		trial, err := d.attachTCX(lo)
		if err != nil {
			return err
		}
		return trial.Close()
	}
	return nil
}

// scan attaches to newly matching devices and drops devices that are gone. It
// returns the first device's refusal separately from a failure to list devices.
func (d *devices) scan() (first, err error) {
	d.limitations = nil
	links, err := d.netlink.LinkList()
	partial := errors.Is(err, netlink.ErrDumpInterrupted) // The next scan completes an interrupted dump.
	if err != nil && !partial {
		err = fmt.Errorf("list the network devices: %w", err)
		d.limitations = []string{err.Error()}
		return nil, err
	}
	seen := map[int]bool{}
	for _, l := range links {
		a := l.Attrs()
		if !d.matches(a.Name) {
			continue
		}
		seen[a.Index] = true
		if h := d.held[a.Index]; h != nil && d.holds(l, h) {
			h.device = a.Name
			continue
		}
		h, err := d.attach(l)
		if errors.Is(err, unix.ENODEV) {
			continue // the device was removed meanwhile
		}
		if err != nil {
			err = fmt.Errorf("attach to device %s: %w", a.Name, explainDevice(err))
			d.limitations = append(d.limitations, "what the device sends: "+err.Error())
			if first == nil {
				first = err
			}
			delete(d.held, a.Index)
			continue
		}
		d.held[a.Index] = h
	}
	for index, h := range d.held {
		if !seen[index] && !partial {
			if err := d.detach(index, h); err != nil {
				d.limitations = append(d.limitations, fmt.Sprintf("detach from device %s: %v", h.device, err))
			}
			delete(d.held, index)
		}
	}
	if len(seen) == 0 {
		d.limitations = append(d.limitations, "anything yet: no network device matches "+strings.Join(d.patterns, ", "))
	}
	return first, nil
}

func (d *devices) matches(name string) bool {
	return slices.ContainsFunc(d.patterns, func(p string) bool {
		ok, _ := path.Match(p, name)
		return ok
	})
}

// names returns the devices in use.
func (d *devices) names() []string {
	var names []string
	for h := range maps.Values(d.held) {
		names = append(names, h.device)
	}
	slices.Sort(names)
	return names
}

// programFor selects the program by the header that the device's packets begin
// with.
func (d *devices) programFor(l netlink.Link) (*ebpf.Program, error) {
	switch encap := l.Attrs().EncapType; encap {
	case "ether", "loopback":
		return d.frames, nil
	case "none", "ppp", "ipip", "tunnel6", "sit", "gre", "unknown519", "unknown823": // the last two: RAWIP, IP6GRE
		return d.packets, nil
	default:
		return nil, fmt.Errorf("its packets begin with a header of type %q, which the probe cannot read", encap)
	}
}

func (d *devices) attach(l netlink.Link) (*attachment, error) {
	// Remove filters of a killed run first, whichever hook this run uses.
	filters, err := d.filters(l)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		if err := d.removeStale(f); err != nil {
			return nil, err
		}
	}
	if d.kind == TCX {
		tcx, err := d.attachTCX(l)
		if err != nil {
			return nil, err
		}
		return &attachment{device: l.Attrs().Name, tcx: tcx}, nil
	}
	return d.attachFilter(l)
}

func (d *devices) attachTCX(l netlink.Link) (tcx link.Link, err error) {
	program, err := d.programFor(l)
	if err != nil {
		return nil, err
	}
	// The index of a device is valid in the namespace of the thread.
	err = d.inside(func() error {
		tcx, err = link.AttachTCX(link.TCXOptions{
			Interface: l.Attrs().Index, Program: program, Attach: ebpf.AttachTCXEgress,
			// Programs attached after ours see only packets that earlier ones let
			// pass.
			Anchor: link.Head(),
		})
		return err
	})
	return tcx, err
}

// attachFilter adds our filter, and a clsact if the device has none.
func (d *devices) attachFilter(l netlink.Link) (*attachment, error) {
	program, err := d.programFor(l)
	if err != nil {
		return nil, err
	}
	h := &attachment{device: l.Attrs().Name}
	err = d.netlink.QdiscAdd(clsact(l))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("add a clsact: %w", err)
	}
	h.made = err == nil
	filters, err := d.filters(l)
	if err != nil {
		return nil, err
	}
	f := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS,
			Priority: priority(filters), Protocol: unix.ETH_P_ALL,
		},
		Fd: program.FD(), Name: filterName + d.lease.name, DirectAction: true,
	}
	// A handle of its own distinguishes the filter from others, and adding it never
	// replaces another filter.
	for range 4 {
		var b [2]byte
		rand.Read(b[:])
		f.Handle = 0x6e6b0000 | uint32(binary.NativeEndian.Uint16(b[:]))
		if err = d.netlink.FilterAdd(f); !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil {
		if h.made {
			err = errors.Join(err, d.removeClsact(l))
		}
		return nil, fmt.Errorf("add a cls_bpf filter of priority %d to clsact egress: %w (a qdisc \"ingress\" on the device leaves no room for a clsact)", f.Priority, err)
	}
	return h, nil
}

func clsact(l netlink.Link) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
}

// priority returns a number before all existing filters on the device: a filter
// that accepts a packet ends the chain.
func priority(filters []netlink.Filter) uint16 {
	p := uint16(filterPriority)
	taken := map[uint16]bool{}
	for _, f := range filters {
		a := f.Attrs()
		// All filters of one priority have the same type and protocol.
		if b, ok := f.(*netlink.BpfFilter); !ok || a.Protocol != unix.ETH_P_ALL {
			taken[a.Priority] = true
		} else if strings.HasPrefix(b.Name, filterName) {
			continue
		}
		p = min(p, max(1, a.Priority-1))
	}
	for taken[p] {
		p++
	}
	return p
}

// filters lists the filters on the device's egress; none without a clsact.
func (d *devices) filters(l netlink.Link) ([]netlink.Filter, error) {
	return d.filtersOf(l, netlink.HANDLE_MIN_EGRESS)
}

func (d *devices) filtersOf(l netlink.Link, parent uint32) ([]netlink.Filter, error) {
	filters, err := d.netlink.FilterList(l, parent)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list the filters of the device: %w", err)
	}
	return filters, nil
}

// holds reports whether an attachment is still in place: other programs may remove
// a clsact with everything on it.
func (d *devices) holds(l netlink.Link, h *attachment) bool {
	if h.tcx != nil {
		info, err := h.tcx.Info()
		if err != nil || info.TCX() == nil || int(info.TCX().Ifindex) == l.Attrs().Index {
			return true
		}
		h.tcx.Close()
		return false
	}
	filters, err := d.filters(l)
	return err != nil || slices.ContainsFunc(filters, d.own)
}

func (d *devices) own(f netlink.Filter) bool {
	b, ok := f.(*netlink.BpfFilter)
	return ok && b.Handle != 0 && b.Name == filterName+d.lease.name
}

// removeStale removes a filter of ours whose process is gone.
func (d *devices) removeStale(f netlink.Filter) error {
	b, ok := f.(*netlink.BpfFilter)
	if !ok || b.Handle == 0 || b.Name == filterName+d.lease.name {
		return nil
	}
	name, ok := strings.CutPrefix(b.Name, filterName)
	if !ok {
		return nil
	}
	return d.inside(func() error {
		if leased(name) {
			return nil
		}
		if err := d.netlink.FilterDel(b); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove the filter %s, which an earlier run left: %w", b.Name, err)
		}
		return nil
	})
}

func (d *devices) detach(index int, h *attachment) error {
	if h.tcx != nil {
		return h.tcx.Close()
	}
	l, err := d.netlink.LinkByIndex(index)
	if err != nil {
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) || errors.Is(err, unix.ENODEV) {
			return nil // the filter was deleted with the device
		}
		return err
	}
	filters, err := d.filters(l)
	if err != nil {
		return err
	}
	found := false
	for _, f := range filters {
		if !d.own(f) {
			continue
		}
		found = true
		if err := d.netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove the filter: %w", err)
		}
	}
	// If the filter is gone, so is the clsact that we created for it.
	if h.made && found {
		return d.removeClsact(l)
	}
	return nil
}

// removeClsact removes the clsact unless another program uses it.
func (d *devices) removeClsact(l netlink.Link) error {
	for _, parent := range []uint32{netlink.HANDLE_MIN_EGRESS, netlink.HANDLE_MIN_INGRESS} {
		filters, err := d.filtersOf(l, parent)
		if err != nil || len(filters) > 0 {
			return err
		}
	}
	if err := d.netlink.QdiscDel(clsact(l)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the clsact: %w", err)
	}
	return nil
}

// stop detaches from all devices, after which another kind of hook may start.
func (d *devices) stop() error {
	var errs []error
	for index, h := range d.held {
		if err := d.detach(index, h); err != nil {
			errs = append(errs, fmt.Errorf("detach from device %s: %w", h.device, err))
		}
		delete(d.held, index)
	}
	return errors.Join(errs...)
}

func (d *devices) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	err := d.stop()
	if d.netlink != nil {
		d.netlink.Close()
	}
	d.lease.close()
	unix.Close(int(d.netns))
	return err
}

func explainDevice(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, link.ErrNotSupported) {
		return explain(err)
	}
	return err
}

// lease is the name of an abstract socket, which the kernel frees when the process
// ends, however it ends. PIDs would not do, because processes in different
// containers do not see each other's.
type lease struct {
	name string
	fd   int
}

func newLease() (lease, error) {
	var b [8]byte
	rand.Read(b[:])
	l := lease{name: hex.EncodeToString(b[:])}
	var err error
	if l.fd, err = bindLease(l.name); err != nil {
		return lease{fd: -1}, fmt.Errorf("bind the socket @%s%s, which shows that this process runs: %w", filterName, l.name, err)
	}
	return l, nil
}

func bindLease(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + filterName + name}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// leased reports whether the process that holds the name still runs; true if
// unsure.
func leased(name string) bool {
	if len(name) == 0 || len(name) > 64 {
		return true
	}
	fd, err := bindLease(name)
	if err != nil {
		return true
	}
	unix.Close(fd)
	return false
}

func (l lease) close() {
	if l.fd >= 0 {
		unix.Close(l.fd)
	}
}

// rescanWait is how long reading the flows waits for a running scan of the devices.
const rescanWait = 300 * time.Millisecond

// Rescan attaches the probe to new matching devices and detaches it from removed
// ones. State reports what failed. For probes without devices it does nothing.
//
// The kernel answers only when the current holder of RTNL releases it. Rescan does
// not wait that long: attached devices keep counting, and State reports the wait.
func (p *Probe) Rescan() {
	d := p.devices
	if d == nil {
		return
	}
	if scan, fresh := d.rescan(); fresh {
		t := time.NewTimer(rescanWait)
		defer t.Stop()
		select {
		case <-scan:
		case <-t.C:
		}
	}
	p.showDevices()
}

// rescan starts a scan unless one is running. The channel is closed when the scan
// ends.
func (d *devices) rescan() (scan <-chan struct{}, fresh bool) {
	d.scanMu.Lock()
	defer d.scanMu.Unlock()
	if d.scanning != nil {
		select {
		case <-d.scanning:
		default:
			return d.scanning, false
		}
	}
	done := make(chan struct{})
	d.scanning, d.since = done, time.Now()
	go func() {
		defer close(done)
		d.mu.Lock()
		defer d.mu.Unlock()
		defer d.publish()
		defer func() {
			if r := recover(); r != nil {
				d.limitations = append(d.limitations, fmt.Sprintf("devices that have come since: looking for them failed: panic: %v\n%s", r, debug.Stack()))
			}
		}()
		if !d.closed {
			d.scan() // failures are recorded in limitations
		}
	}()
	return done, true
}

// publish publishes the result of a scan. The caller holds d.mu.
func (d *devices) publish() {
	d.found.Store(&found{d.names(), strings.Join(d.limitations, "; ")})
}

// shown returns the devices in use and their limitations as of the last finished
// scan, without waiting for a running one.
func (d *devices) shown() (names []string, limitations string) {
	if f := d.found.Load(); f != nil {
		names, limitations = f.names, f.limitations
	}
	d.scanMu.Lock()
	defer d.scanMu.Unlock()
	select {
	case <-d.scanning:
		return names, limitations
	default:
	}
	if d.scanning == nil || time.Since(d.since) < rescanWait {
		return names, limitations
	}
	wait := fmt.Sprintf("devices that have come since %s: the kernel has not listed the network devices yet (another program holds its lock RTNL; see /proc/*/stack)", d.since.Format(time.TimeOnly))
	if limitations != "" {
		wait = limitations + "; " + wait
	}
	return names, wait
}

func (p *Probe) showDevices() {
	names, limitations := p.devices.shown()
	p.hookMu.Lock()
	defer p.hookMu.Unlock()
	for i := range p.hooks {
		if h := &p.hooks[i]; h.Kind == TCX || h.Kind == Clsact {
			h.Devices, h.Limitation = names, limitations
		}
	}
}
