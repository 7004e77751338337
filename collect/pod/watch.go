package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/types"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// DefaultSockets are containerd's usual sockets: of its own package, k3s and rke2, k0s,
// microk8s, and of a containerd that Docker has started.
var DefaultSockets = []string{
	"/run/containerd/containerd.sock",
	"/run/k3s/containerd/containerd.sock",
	"/run/k0s/containerd.sock",
	"/var/snap/microk8s/common/run/containerd.sock",
	dockerContainerd,
}

// Options choose the containerd to follow, and what to keep.
type Options struct {
	// Sockets are the candidates in order; the first that answers is used. Empty means
	// DefaultSockets.
	Sockets []string
	// Namespace names the containerd namespaces to follow, separated by commas; "*" or ""
	// means all.
	Namespace string
	// ProcRoot is where procfs is mounted; "" means /proc.
	ProcRoot string
	// HostNetns is the path of the host's network namespace; "" means that of process 1.
	HostNetns string
	// Reserved are values that a pod may not have in both pod labels because they have
	// another meaning, such as the host's. UnknownLabel is always reserved.
	Reserved []string
	// Labels are the pod labels to keep in any case; of the others only a limited number is
	// kept. See Index.KeepLabels.
	Labels []string
	// Runtimes: log which other runtimes listen on this machine and run containers
	// without names.
	Runtimes bool
	Log      *slog.Logger
}

const (
	minRetry   = 100 * time.Millisecond
	maxRetry   = time.Second
	resyncSoon = time.Second      // after the first listing, and after lost events
	resyncHung = 10 * time.Second // while a shim hangs
	pruneEvery = 5 * time.Second
	// storedEvery is how often sandboxes without processes are checked, and new
	// sandboxes are looked for.
	storedEvery = time.Second
	addrsEvery  = 2 * time.Minute
	maxEvents   = 4096 // waiting to be handled
	maxAsking   = 8    // concurrent requests for tasks
	maxPast     = 64   // ended containers of a pod that continues
)

// intervals can be shortened by tests.
type intervals struct {
	resync   time.Duration // between listings
	ping     time.Duration // between checks that containerd still answers
	runtimes time.Duration // between looks for other runtimes
}

var usual = intervals{resync: 30 * time.Second, ping: 10 * time.Second, runtimes: 15 * time.Second}

var errNotKnown = errors.New("containerd has not listed its containers yet")

// Watch follows containerd until ctx ends. It returns at once, and keeps trying while
// containerd is absent or does not answer.
func Watch(ctx context.Context, opt Options) *Index { return watch(ctx, opt, usual) }

func watch(ctx context.Context, opt Options, every intervals) *Index {
	named := len(opt.Sockets) > 0
	if !named {
		opt.Sockets = DefaultSockets
	}
	if opt.ProcRoot == "" {
		opt.ProcRoot = "/proc"
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	opt.Reserved = append(slices.Clip(opt.Reserved), owner.UnknownLabel)
	w := &watcher{
		opt:        opt,
		named:      named,
		every:      every,
		x:          newIndex(opt.ProcRoot),
		follow:     parseNamespaces(opt.Namespace),
		host:       hostNetns(opt),
		containers: map[key]*container{},
		groups:     map[key]*group{},

		names:       map[podName][]*group{},
		sharedShims: map[int]bool{},
		looked:      time.Now(),
	}
	w.x.sockets = opt.Sockets
	w.x.labels.Store(&opt.Labels)
	go w.run(ctx)
	return w.x
}

// parseNamespaces returns nil for all namespaces.
func parseNamespaces(s string) []string {
	var names []string
	for n := range strings.SplitSeq(s, ",") {
		switch n = strings.TrimSpace(n); n {
		case "":
		case "*":
			return nil
		default:
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return names
}

// hostNetns falls back to this process's own namespace if that of process 1 cannot be read:
// a daemon outside containers shares it.
func hostNetns(opt Options) uint64 {
	path := opt.HostNetns
	if path == "" {
		path = opt.ProcRoot + "/1/ns/net"
	}
	host, err := netnsInode(path)
	if err != nil {
		opt.Log.Warn("cannot read the host's network namespace; using this process's own", "error", err, "hint", "it needs CAP_SYS_PTRACE; else set host_netns to a file that is a network namespace")
		host, _ = netnsInode("/proc/thread-self/ns/net")
	}
	return host
}

// watcher is the state behind an Index. One goroutine owns it.
type watcher struct {
	opt    Options
	named  bool // Options name the sockets, not the defaults
	every  intervals
	x      *Index
	follow []string
	host   uint64
	trees  []hierarchy
	roots  []string // mounted parts of the control group trees in containerd's mount namespace; "" is /

	containers map[key]*container
	groups     map[key]*group
	names      map[podName][]*group
	// sharedShims are the PIDs of shims that serve several pods.
	sharedShims map[int]bool
	cl          *client // nil while not connected
	files       dockerFiles

	seq      uint64
	deleted  map[key]bool // containers deleted during a listing
	down     bool         // the lack of a connection has been logged
	absent   bool         // the logged reason was that no socket exists
	panicked atomic.Bool  // a panic has been logged
	refused  int          // rounds since that log line with a socket but no answer
	denied   bool         // unreadable namespaces of processes have been logged
	unnamed  bool         // an unnamed Docker container has been logged
	looked   time.Time    // last look for other runtimes
	said     []string     // messages that have been logged about runtimes
}

// run finds a containerd that answers, follows it until the connection ends, and starts
// over.
func (w *watcher) run(ctx context.Context) {
	defer close(w.x.done)
	retry := minRetry
	for ctx.Err() == nil {
		ok, err := w.guardedRound(ctx)
		w.x.connected.Store(false)
		w.cl = nil
		if ctx.Err() != nil {
			break
		}
		w.report(err)
		if ok {
			retry = minRetry
		} else if !isClosed(w.x.tried) {
			close(w.x.tried)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
		retry = min(2*retry, maxRetry)
		w.sayPanic(bounded.Guard(func() {
			w.checkTasks()
			w.checkStored(time.Now())
			w.x.prune(time.Now())
			w.sayRuntimes(time.Now())
		}))
	}
	w.x.setStatus(Status{Err: context.Cause(ctx)})
}

// guardedRound is round with a recover: a panic ends the round and is logged
// once.
func (w *watcher) guardedRound(ctx context.Context) (answered bool, err error) {
	if p := bounded.Guard(func() { answered, err = w.round(ctx) }); p != nil {
		w.sayPanic(p)
		if w.cl != nil {
			_ = w.cl.conn.Close()
		}
		return answered, errPanic
	}
	return answered, err
}

var errPanic = errors.New("following it failed because of a bug in nodeskoop; the log has the details")

func (w *watcher) sayPanic(err error) {
	if err != nil && w.panicked.CompareAndSwap(false, true) {
		w.opt.Log.Error("watching containerd failed", "error", err)
	}
}

// aside runs f in a goroutine of a session. A panic in f ends the session.
func aside(wg *sync.WaitGroup, failed func(error), f func()) {
	wg.Go(func() {
		if err := bounded.Guard(f); err != nil {
			failed(err)
		}
	})
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

var errAbsent = errors.New("there is no containerd socket")

// round tries each socket once, and follows the first containerd that answers until the
// connection ends. It reports whether one answered, and why it ended.
func (w *watcher) round(ctx context.Context) (answered bool, err error) {
	err = fmt.Errorf("%w at any of %s", errAbsent, strings.Join(w.opt.Sockets, ", "))
	found := false
	for _, s := range w.opt.Sockets {
		path, there := socketFile(s)
		if !there {
			continue
		}
		cl, version, connErr := connect(ctx, path)
		if connErr != nil {
			if !found {
				err = connErr
			}
			found = true
			continue
		}
		w.cl = cl
		answered, err = w.session(ctx, path, version)
		_ = cl.conn.Close()
		if answered || ctx.Err() != nil {
			return answered, err
		}
		found = true
	}
	return false, err
}

// socketFile returns the path of a candidate, and whether there is a socket.
func socketFile(candidate string) (path string, there bool) {
	path = strings.TrimPrefix(candidate, "unix://")
	st, err := os.Stat(path)
	return path, err == nil && st.Mode()&os.ModeSocket != 0
}

// report logs a line when the connection to containerd ends or no containerd is found at
// the start, and one more when a socket exists but nothing answers.
func (w *watcher) report(err error) {
	w.x.setStatus(Status{Err: err})
	absent := errors.Is(err, errAbsent)
	if w.down && (absent || !w.absent) {
		return
	}
	// A containerd that has just started may not answer yet.
	if w.refused++; w.down && w.refused < 3 {
		return
	}
	w.down, w.absent, w.refused = true, absent, 0
	if absent {
		// A node without containers is no reason for a warning.
		level := slog.LevelInfo
		if w.named {
			level = slog.LevelWarn
		}
		w.opt.Log.Log(context.Background(), level, "no containerd found; pods are named as soon as one answers", "sockets", strings.Join(w.opt.Sockets, ", "))
		return
	}
	w.opt.Log.Warn("containerd does not answer; pods are kept while their processes run", "error", err)
}

// session follows one containerd: it listens to its events, lists all containers, and lists
// them again at intervals in case an event was missed. It reports whether a listing has
// succeeded.
func (w *watcher) session(ctx context.Context, socket, version string) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	if err := w.samePIDs(socket); err != nil {
		return false, err
	}
	mountinfo, err := kernel.ReadFile(unix.AT_FDCWD, w.opt.ProcRoot+"/self/mountinfo", nil)
	if err != nil {
		w.opt.Log.Warn("cannot find the control groups' file systems", "error", fmt.Errorf("read %s/self/mountinfo: %w", w.opt.ProcRoot, err))
	}
	w.trees = parseMountinfo(mountinfo)
	w.roots = w.findRoots()
	if i := slices.IndexFunc(w.trees, func(h hierarchy) bool { return h.v2 }); i >= 0 {
		tree := w.trees[i]
		w.x.unified.Store(&tree)
	}

	stream, err := w.cl.subscribe(ctx, w.follow)
	if err != nil {
		return false, fmt.Errorf("subscribe to containerd's events: %w", plainError(err))
	}
	incoming := make(chan *types.Envelope, maxEvents)
	lost := make(chan struct{}, 1)
	ended := make(chan error, 1)
	broken := make(chan error, 3)
	fail := func(err error) {
		w.sayPanic(err)
		select {
		case broken <- errPanic:
		default:
		}
	}
	aside(&wg, fail, func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				ended <- fmt.Errorf("containerd's events end: %w", plainError(err))
				return
			}
			select {
			case incoming <- e:
			default:
				// Drop the event. Otherwise containerd would buffer all events
				// that are not received.
				select {
				case lost <- struct{}{}:
				default:
				}
			}
		}
	})

	listings := make(chan *listing, 1)
	listening, missed, renew := false, false, false
	list := func() {
		if listening {
			return
		}
		listening, missed = true, false
		w.deleted = map[key]bool{}
		l := &listing{seq: w.seq, known: w.known(), keep: w.x.keptLabels(), files: &w.files, root: w.peerRoot()}
		if renew {
			renew = false
			for k, s := range l.known {
				l.known[k] = knownState{alive: s.alive} // read its labels again
			}
		}
		cl := w.cl
		aside(&wg, fail, func() {
			l.run(ctx, cl, w.follow)
			listings <- l
		})
	}
	list()
	pings := make(chan error, 1)
	pinging := false
	polled := make(chan map[key]*types.Sandbox, 1)
	polling := false
	resync := time.NewTimer(time.Hour)
	defer resync.Stop()
	ping := time.NewTicker(w.every.ping)
	defer ping.Stop()
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	stored := time.NewTicker(storedEvery)
	defer stored.Stop()
	for {
		select {
		case <-ctx.Done():
			return answered, ctx.Err()
		case err := <-ended:
			return answered, err
		case err := <-broken:
			return answered, err
		case e := <-incoming:
			w.seq++
			w.handle(ctx, e)
		case <-lost:
			if !missed {
				missed = true
				resync.Reset(resyncSoon)
			}
		case <-resync.C:
			list()
		case <-w.x.relabel:
			renew = true
			list()
		case l := <-listings:
			listening = false
			if l.err != nil {
				return answered, l.err
			}
			w.apply(l)
			w.deleted = nil
			if renew {
				list()
			}
			next := w.every.resync
			switch {
			case !answered, missed:
				// The first listing may have started before the subscription.
				next = resyncSoon
			case len(l.unknown) > 0:
				next = resyncHung
			}
			resync.Reset(next)
			if !answered {
				answered = true
				w.up(socket, version)
			}
		case <-ping.C:
			if !pinging {
				pinging = true
				cl := w.cl
				aside(&wg, fail, func() {
					_, err := cl.version(ctx)
					pings <- err
				})
			}
		case err := <-pings:
			pinging = false
			if err != nil {
				return answered, fmt.Errorf("ask containerd behind %s for its version: %w", socket, plainError(err))
			}
		case now := <-stored.C:
			w.checkStored(now)
			if known := w.storing(now); known != nil && !polling {
				polling = true
				cl := w.cl
				aside(&wg, fail, func() { polled <- cl.newSandboxes(ctx, known) })
			}
		case list := <-polled:
			polling = false
			for k, r := range list {
				w.seq++ // as an event: a listing that began before does not know it
				w.storeSandbox(k, r, time.Now())
			}
		case now := <-prune.C:
			w.x.prune(now)
			if answered {
				w.sayRuntimes(now)
			}
		}
	}
}

// findRoots returns the mounted parts of the control group trees in containerd's mount
// namespace. The paths that containerd gives to containers are below them.
func (w *watcher) findRoots() []string {
	trees := w.trees
	if peer := int(w.cl.peer.Load()); peer != 0 {
		if b, err := kernel.ReadFile(unix.AT_FDCWD, kernel.ProcessDir(w.opt.ProcRoot, peer)+"/mountinfo", nil); err == nil {
			trees = parseMountinfo(b)
		}
	}
	var roots []string
	for i := range trees {
		if root := strings.TrimSuffix(trees[i].root, "/"); !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	return roots
}

// samePIDs fails if containerd is in another PID namespace than this process.
func (w *watcher) samePIDs(socket string) error {
	peer := int(w.cl.peer.Load())
	if peer != 0 {
		own, err := kernel.Inode(w.opt.ProcRoot + "/self/ns/pid")
		other, err2 := kernel.Inode(w.procFile(peer, "ns/pid"))
		if err != nil || err2 != nil || own == other {
			return nil
		}
	}
	return fmt.Errorf("containerd behind %s is in another PID namespace than this process, so its PIDs mean nothing here: run nodeskoop in containerd's PID namespace", socket)
}

func (w *watcher) up(socket, version string) {
	w.down, w.absent = false, false
	w.x.setStatus(Status{Socket: socket, Version: version})
	w.x.connected.Store(true)
	w.opt.Log.Info("containerd answers", "socket", socket, "version", version, "pods", len(w.x.Running()))
	if !isClosed(w.x.first) {
		close(w.x.first)
	}
}
