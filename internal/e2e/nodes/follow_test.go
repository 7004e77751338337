package nodes

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// podName names a pod: namespace and name.
type podName [2]string

func (p podName) String() string { return p[0] + "/" + p[1] }

// textfile is one version of nodeskoop's textfile.
type textfile struct {
	begin  time.Time // start of the cycle
	read   time.Time // time at which the test read the file
	values map[string]float64
	pods   map[podName]int // number of series of each pod
	types  map[string]string
	load   time.Duration // value of contention when the file was read
}

// waited returns how long tasks had to wait for a CPU since an earlier value of
// contention.
func (f *textfile) waited(since time.Duration) time.Duration { return f.load - since }

const (
	hostLabel    = "hostNetwork"
	unknownLabel = "unknown"
)

// parse reads a textfile. A duplicate series is an error.
func parse(text []byte) (*textfile, error) {
	f := &textfile{values: map[string]float64{}, pods: map[podName]int{}, types: map[string]string{}}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			f.types[name] = kind
		}
		if line == "" || line[0] == '#' {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		if at < 0 {
			return nil, fmt.Errorf("%q is no sample", line)
		}
		series := line[:at]
		v, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("%q is no sample: %w", line, err)
		}
		if _, ok := f.values[series]; ok {
			return nil, fmt.Errorf("the series %s is there twice", series)
		}
		f.values[series] = v
		if strings.HasPrefix(series, "nodeskoop_last_cycle_timestamp_seconds{") {
			f.begin = time.UnixMilli(int64(v * 1000))
		}
		if p, ok := podOf(series); ok {
			f.pods[p]++
		}
	}
	if f.begin.IsZero() {
		return nil, fmt.Errorf("the time of the cycle is missing in %d bytes", len(text))
	}
	return f, nil
}

func label(series, name string) (string, bool) {
	for _, before := range []string{"{", ","} {
		if _, rest, ok := strings.Cut(series, before+name+`="`); ok {
			value, _, _ := strings.Cut(rest, `"`)
			return value, true
		}
	}
	return "", false
}

// podOf returns the pod that a series belongs to; ok is false for the host and for
// unattributed series.
func podOf(series string) (p podName, ok bool) {
	p[0], _ = label(series, "k8s_namespace")
	p[1], ok = label(series, "k8s_pod")
	return p, ok && p[1] != hostLabel && p[1] != unknownLabel && p[1] != ""
}

// names lists the pods that have series.
func (f *textfile) names() []string {
	var names []string
	for p := range f.pods {
		names = append(names, p.String())
	}
	slices.Sort(names)
	return names
}

// value is the value of a pod's metric with no further labels.
func (f *textfile) value(metric string, p podName) (float64, bool) {
	v, ok := f.values[fmt.Sprintf("%s{k8s_node=%q,k8s_namespace=%q,k8s_pod=%q}", metric, "node1", p[0], p[1])]
	return v, ok
}

// follower reads each textfile as it is written.
type follower struct {
	file string
	stop chan struct{}
	done chan struct{}

	mu      sync.Mutex
	files   []*textfile // only the last one has values
	lasting map[podName]bool
	counted map[string]float64 // counters of lasting pods, at their last reading
	faults  []string
	reads   int
}

func follow(file string) *follower {
	f := &follower{file: file, stop: make(chan struct{}), done: make(chan struct{}), lasting: map[podName]bool{}, counted: map[string]float64{}}
	go f.run()
	return f
}

func (f *follower) close() {
	close(f.stop)
	<-f.done
}

func (f *follower) run() {
	defer close(f.done)
	var last uint64
	for {
		select {
		case <-f.stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
		info, err := os.Stat(f.file)
		if err != nil {
			continue // nodeskoop does not run now
		}
		inode := info.Sys().(*syscall.Stat_t).Ino ^ uint64(info.ModTime().UnixNano())
		if inode == last {
			continue
		}
		text, err := os.ReadFile(f.file)
		if err != nil {
			continue
		}
		last = inode
		f.take(text)
	}
}

func (f *follower) take(text []byte) {
	file, err := parse(bytes.TrimSpace(text))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	if err != nil {
		f.fault("%v", err)
		return
	}
	file.read, file.load = time.Now(), contention()
	if n := len(f.files); n > 0 {
		before := *f.files[n-1] // a test may still look at it
		before.values = nil
		f.files[n-1] = &before
	}
	f.files = append(f.files, file)
	for p := range f.lasting {
		if file.pods[p] == 0 {
			f.fault("the pod %v, which lasts, is missing in the cycle of %s", p, file.begin.Format(time.StampMilli))
		}
	}
	for series, v := range file.values {
		name, _, _ := strings.Cut(series, "{")
		// The counters of flow, and those about nodeskoop itself, start from 0 in each
		// run.
		if file.types[name] != "counter" || !strings.HasPrefix(name, "kubeskoop_") || strings.HasPrefix(name, "kubeskoop_flow_") {
			continue
		}
		p, ok := podOf(series)
		if ok && !f.lasting[p] {
			continue
		}
		if was, ok := f.counted[series]; ok && v < was {
			f.fault("%s fell from %v to %v", series, was, v)
		}
		f.counted[series] = v
	}
}

func (f *follower) fault(format string, args ...any) {
	if len(f.faults) < 20 {
		f.faults = append(f.faults, fmt.Sprintf(format, args...))
	}
}

// holds declares that pods last from now on: each file must have them, and their
// counters must never fall.
func (f *follower) holds(last ...podName) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range last {
		f.lasting[p] = true
	}
}

// releases ends the declarations made with holds.
func (f *follower) releases() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.lasting)
}

// verdict returns the faults since the last call, and the number of files read.
func (f *follower) verdict() (faults []string, reads int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	faults, reads = f.faults, f.reads
	f.faults, f.reads = nil, 0
	return faults, reads
}

// last returns the last file, if its cycle began at or after a time; else nil.
func (f *follower) last(since time.Time) *textfile {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.files); n > 0 && !f.files[n-1].begin.Before(since) {
		return f.files[n-1]
	}
	return nil
}

// cycles returns the files whose cycles began between two times.
func (f *follower) cycles(from, to time.Time) (within []*textfile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.files {
		if !c.begin.Before(from) && c.begin.Before(to) {
			within = append(within, c)
		}
	}
	return within
}
