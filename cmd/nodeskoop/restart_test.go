package main

import (
	"bytes"
	encoding "encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// node is a network namespace that stands for a host, with a daemon's
// configuration.
type node struct {
	t         *testing.T
	host, far *nsnet.Space
	dir       string
	cfg       string
	n         int
	last      map[string]float64
}

// keptProbes are probes that compute counters from several readings of the kernel.
const keptProbes = "'netdev','qdisc','softnet','conntrack','io','packetloss','tcpreset','tcpretrans','socketlatency','kernellatency','netiftxlatency','net_softirq','tcp'"

func newNode(t *testing.T, probes, more string) *node {
	need.Root(t)
	n := &node{t: t, host: nsnet.New(t), far: nsnet.New(t), dir: t.TempDir()}
	for _, s := range []*nsnet.Space{n.host, n.far} {
		s.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
		s.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	}
	n.cfg = conf(t, n.dir, fmt.Sprintf("node_name = 'n1'\ninterval = '1s'\nhost_netns = '%s'\n[probes]\nenabled = [%s]\n[textfile]\ndir = '%s'\n[state]\ndir = '%s'\n%s%s",
		n.host.Path, probes, n.dir, n.state(), more, noPods))
	return n
}

func (n *node) state() string { return filepath.Join(n.dir, "state") }
func (n *node) file() string  { return filepath.Join(n.dir, "nodeskoop.prom") }

// link creates an interface and sends packets over it.
func (n *node) link(name string, packets int) {
	n.t.Helper()
	n.n++
	peer, net := fmt.Sprintf("p%d", n.n), fmt.Sprintf("10.7.%d.", n.n)
	n.host.Run("ip", "link", "add", name, "type", "veth", "peer", "name", peer, "netns", fmt.Sprint(n.far.PID))
	n.far.Run("ip", "link", "set", peer, "up")
	n.host.Run("ip", "addr", "add", net+"1/24", "dev", name)
	n.host.Run("ip", "link", "set", name, "up")
	n.host.Run("ip", "neigh", "add", net+"2", "lladdr", "02:00:00:00:00:02", "dev", name)
	testkit.Eventually(n.t, name+" is up", func() bool { return strings.Contains(n.host.Run("ip", "-o", "link", "show", name), " state UP ") })
	c := n.host.Dial("udp", net+"2:9")
	for range packets {
		if _, err := c.Write(make([]byte, 972)); err != nil {
			n.t.Fatal(err)
		}
	}
	_ = c.Close()
}

// trouble makes the other counters rise.
func (n *node) trouble() {
	c := n.host.Dial("udp", "127.0.0.1:9")
	for range 6 {
		_, _ = c.Write([]byte("nobody listens"))
	}
	_ = c.Close()
	_, _ = n.host.Try("sh", "-c", "for i in 1 2 3; do head -c 100000 /dev/zero | cat > /dev/null; done")
}

// countersIn returns the values of an exposition that may never fall: all counters
// but flow's and those of the tool about itself, and all of a histogram. Loop devices
// come and go with other tests.
func countersIn(fams map[string]*dto.MetricFamily) map[string]float64 {
	out := map[string]float64{}
	for name, f := range fams {
		for _, m := range f.Metric {
			h, key := m.GetHistogram(), name
			for _, l := range m.Label {
				key += "," + l.GetValue()
			}
			if h == nil || strings.Contains(key, ",loop") {
				continue
			}
			for _, b := range h.Bucket {
				out[key+",le,"+fmt.Sprint(b.GetUpperBound())] = float64(b.GetCumulativeCount())
			}
			out[key+",sum"] = h.GetSampleSum()
		}
		ours := name == "nodeskoop_packetloss_ignored_total" || name == "nodeskoop_tcpreset_total"
		if f.GetType() != dto.MetricType_COUNTER || strings.HasPrefix(name, "nodeskoop_") && !ours || strings.HasPrefix(name, "kubeskoop_flow_") {
			continue
		}
		for _, m := range f.Metric {
			key := name
			for _, l := range m.Label {
				key += "," + l.GetValue()
			}
			out[key] = m.GetCounter().GetValue()
		}
	}
	return out
}

// seen compares a reader's values with its previous ones.
func (n *node) seen(what string, fams map[string]*dto.MetricFamily) {
	n.t.Helper()
	now := countersIn(fams)
	for key, was := range n.last {
		if got, ok := now[key]; !ok || got < was {
			n.t.Errorf("%s: %s was %v and is %v (%v)", what, key, was, got, ok)
		}
	}
	n.last = now
}

func (n *node) txPackets() float64 {
	return n.last["kubeskoop_netdev_txpackets,n1,hostNetwork,hostNetwork"]
}

// cycles waits for the given number of cycles.
func (n *node) cycles(count int) map[string]*dto.MetricFamily {
	n.t.Helper()
	stamp := func() float64 {
		f := parseProm(n.t, n.file())["nodeskoop_last_cycle_timestamp_seconds"]
		if f == nil {
			return 0
		}
		return f.Metric[0].GetGauge().GetValue()
	}
	for range count {
		was := stamp()
		testkit.Eventually(n.t, "another cycle is written", func() bool { return stamp() > was })
	}
	return parseProm(n.t, n.file())
}

// TestNoCounterFallsAtARestart: the daemon is stopped and killed while interfaces,
// processes and qdiscs come and go; no counter of the host falls or counts twice.
func TestNoCounterFallsAtARestart(t *testing.T) {
	n := newNode(t, keptProbes, "")
	n.link("nic", 100)
	sent := 100.0
	for i, end := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGKILL, syscall.SIGTERM} {
		what := fmt.Sprintf("run %d", i)
		p := start(t, "run", "--config", n.cfg)
		n.seen(what, n.cycles(1))
		if n.txPackets() != sent {
			t.Errorf("%s begins with %v packets, want %v", what, n.txPackets(), sent)
		}
		n.link("gone", 30)
		n.trouble()
		n.seen(what, n.cycles(2))
		n.host.Run("ip", "link", "del", "gone")
		sent += 30
		n.seen(what, n.cycles(2))
		if n.txPackets() != sent {
			t.Errorf("%s: %v packets, want %v", what, n.txPackets(), sent)
		}
		// An interface that exists in the last cycle and is gone at the next start.
		n.link("last", 7)
		sent += 7
		n.seen(what, n.cycles(2))
		time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
		if end == syscall.SIGKILL {
			p.signal(end)
			<-p.Done()
			n.seen(what+", what it left", parseProm(t, n.file()))
			// Remove the old file, so that it is not mistaken for the new daemon's.
			if err := os.Remove(n.file()); err != nil {
				t.Fatal(err)
			}
		} else {
			p.signal(end)
			if code := p.ended(); code != 0 {
				t.Errorf("exit code %d", code)
			}
		}
		n.host.Run("ip", "link", "del", "last")
		n.trouble()
	}
	p := start(t, "run", "--config", n.cfg)
	n.seen("the last run", n.cycles(2))
	if n.txPackets() != sent {
		t.Errorf("%v packets, want %v", n.txPackets(), sent)
	}
	for _, name := range []string{"kubeskoop_packetloss_total", "kubeskoop_io_iowritesyscall", "kubeskoop_softnet_processed"} {
		if n.last[name+",n1,hostNetwork,hostNetwork"] == 0 {
			t.Errorf("%s is 0: nothing was tried", name)
		}
	}
	if s := p.logged(); strings.Contains(s, "are reset") || strings.Contains(s, "saving the counters failed") {
		t.Errorf("the log:\n%s", s)
	}
	p.signal(syscall.SIGTERM)
	p.ended()
}

// script writes one sample to standard output.
func (n *node) script(args ...string) (fams map[string]*dto.MetricFamily, stderr string) {
	n.t.Helper()
	path, err := binary()
	if err != nil {
		n.t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.Command(path, append([]string{"collect", "--config", n.cfg}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		n.t.Fatalf("collect: %v\n%s", err, &errs)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	if fams, err = p.TextToMetricFamilies(&out); err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(errs.String()) {
		if !strings.Contains(line, "no containerd found") {
			stderr += line
		}
	}
	return fams, stderr
}

// TestNoCounterFallsInScriptMode: each sample continues from the previous one.
func TestNoCounterFallsInScriptMode(t *testing.T) {
	n := newNode(t, keptProbes, "")
	n.link("nic", 100)
	sent := 100.0
	for i := range 5 {
		fams, errs := n.script("--duration", "300ms")
		if errs != "" {
			t.Errorf("it says %q", errs)
		}
		n.seen(fmt.Sprint("sample ", i), fams)
		if n.txPackets() != sent {
			t.Errorf("sample %d: %v packets, want %v", i, n.txPackets(), sent)
		}
		n.trouble()
		if i%2 == 0 {
			n.link("gone", 20)
			sent += 20
		} else {
			n.host.Run("ip", "link", "del", "gone")
		}
	}
	// A manual run of one probe does not affect the others' state.
	fams, _ := n.script()
	n.seen("before", fams)
	n.host.Run("ip", "link", "del", "gone")
	if fams, _ := n.script("--probe", "tcp"); fams["kubeskoop_netdev_txpackets"] != nil {
		t.Error("netdev was sampled")
	}
	fams, _ = n.script()
	n.seen("the last sample", fams)
	if n.txPackets() != sent {
		t.Errorf("%v packets, want %v", n.txPackets(), sent)
	}
}

// TestStateThatCannotBeUsed: unusable state is reported once, and the program works
// from then on.
func TestStateThatCannotBeUsed(t *testing.T) {
	for _, x := range []struct {
		name, says, level string
		spoil             func(t *testing.T, path string)
	}{
		{"damaged", "damaged", "WARN", func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err == nil {
				b[len(b)/2] ^= 1
				err = os.WriteFile(path, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
		{"empty", "not a state", "WARN", func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) }},
		{"another boot", "another boot", "INFO", anotherBoot},
		{"another user's", "belongs to user 65534", "WARN", func(t *testing.T, path string) { must(t, os.Chown(path, 65534, 65534)) }},
		{"anyone's", "mode 0666", "WARN", func(t *testing.T, path string) { must(t, os.Chmod(path, 0o666)) }},
		{"a link", "too many levels", "WARN", func(t *testing.T, path string) {
			must(t, os.Rename(path, path+".moved"))
			must(t, os.Symlink(path+".moved", path))
		}},
		{"a pipe", "not a regular file", "WARN", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, unix.Mkfifo(path, 0o600))
		}},
		{"huge", "more than", "WARN", func(t *testing.T, path string) { must(t, os.Truncate(path, 1<<40)) }},
	} {
		t.Run(x.name, func(t *testing.T) {
			n := newNode(t, "'netdev'", "")
			n.link("nic", 10)
			n.link("gone", 20)
			n.script()
			n.host.Run("ip", "link", "del", "gone")
			x.spoil(t, filepath.Join(n.state(), "counters"))
			p := start(t, "run", "--config", n.cfg)
			n.seen("anew", n.cycles(2))
			if n.txPackets() != 10 {
				t.Errorf("%v packets, want 10", n.txPackets())
			}
			p.signal(syscall.SIGTERM)
			p.ended()
			said := 0
			for line := range strings.Lines(p.logged()) {
				if strings.Contains(line, "are reset") && strings.Contains(line, x.says) && strings.Contains(line, "level="+x.level) {
					said++
				}
			}
			if said != 1 {
				t.Errorf("%d lines at %s with %q:\n%s", said, x.level, x.says, p.logged())
			}
			// The next run continues from this one's state.
			p = start(t, "run", "--config", n.cfg)
			n.seen("the next run", n.cycles(1))
			if strings.Contains(p.logged(), "are reset") {
				t.Errorf("the next run:\n%s", p.logged())
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// anotherBoot changes the boot in a state file, and its checksum accordingly.
func anotherBoot(t *testing.T, path string) {
	b, err := os.ReadFile(path)
	must(t, err)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	id := bytes.TrimSpace(boot)
	i := bytes.Index(b, id)
	if i < 0 {
		t.Fatal("the state does not name its boot")
	}
	for j := range id {
		if b[i+j] != '-' {
			b[i+j] = '0'
		}
	}
	b = b[:len(b)-4]
	must(t, os.WriteFile(path, encoding.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)), 0o600))
}

// TestOneProcessKeepsTheState: a manual sample beside the daemon shows the same
// values, changes nothing and reports nothing; a second daemon reports that its
// counters are not saved.
func TestOneProcessKeepsTheState(t *testing.T) {
	n := newNode(t, "'netdev'", "")
	n.link("nic", 10)
	n.link("gone", 20)
	p := start(t, "run", "--config", n.cfg)
	n.cycles(2)
	n.host.Run("ip", "link", "del", "gone")
	n.seen("the daemon", n.cycles(2))
	fams, errs := n.script()
	n.seen("beside it", fams)
	if n.txPackets() != 30 || errs != "" {
		t.Errorf("%v packets, %q", n.txPackets(), errs)
	}
	text, err := os.ReadFile(n.cfg)
	must(t, err)
	other := t.TempDir()
	second := start(t, "run", "--config", conf(t, other, strings.Replace(string(text), "dir = '"+n.dir+"'", "dir = '"+other+"'", 1)))
	testkit.Eventually(t, "the second daemon says so", func() bool { return strings.Contains(second.logged(), "another process keeps its state there") })
	n.cycles(2)
	if c := strings.Count(second.logged(), "saving the counters failed"); c != 1 {
		t.Errorf("it was said %d times:\n%s", c, second.logged())
	}
	p.signal(syscall.SIGTERM)
	p.ended()
	testkit.Eventually(t, "the second daemon takes over", func() bool { return strings.Contains(second.logged(), "counters are saved again") })
}

// TestStateOff: no state is written if it is disabled, or if that fails, which is
// reported; the values are written anyway.
func TestStateOff(t *testing.T) {
	n := newNode(t, "'netdev'", "counters = false\n")
	p := start(t, "run", "--config", n.cfg)
	n.cycles(2)
	if _, err := os.Stat(n.state()); err == nil || strings.Contains(p.logged(), "saved again") || strings.Contains(p.logged(), "saving the counters") {
		t.Errorf("%v, %s", err, p.logged())
	}
	p.signal(syscall.SIGTERM)
	p.ended()

	n = newNode(t, "'netdev'", "")
	must(t, os.WriteFile(n.state(), nil, 0o600)) // a file instead of a folder
	p = start(t, "run", "--config", n.cfg)
	n.cycles(3)
	if c := strings.Count(p.logged(), "saving the counters failed"); c != 1 {
		t.Errorf("it was said %d times:\n%s", c, p.logged())
	}
	must(t, os.Remove(n.state()))
	testkit.Eventually(t, "it is kept", func() bool { return strings.Contains(p.logged(), "counters are saved again") })
}
