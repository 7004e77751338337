package compare

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// TestCompare prints the tables of `make bench-compare`.
func TestCompare(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("NODESKOOP_COMPARE"))
	need.Target(t, "bench-compare", err == nil && n > 0)
	need.Root(t)
	need.Program(t, "bpftrace", "iperf3")
	var u unix.Utsname
	_ = unix.Uname(&u)
	t.Logf("Linux %s, %s; ratios with their quartiles; others on the machine widen them", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]))
	t.Run("procfs", compareProcfs)
	t.Run("hooks", func(t *testing.T) { compareHooks(t, n) })
	t.Run("flood", compareFlood)
}

// compareProcfs: the 13 probes beside node_exporter's collectors.
func compareProcfs(t *testing.T) {
	t.Log("CPU of the 13 probes per namespace and cycle / of a scrape of node_exporter, which sees one namespace:")
	for _, n := range []int{1, 20, 110} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			t.Logf("  %3d namespaces with 18 connections each: %s", n, ratioOf(cycleRatio(t, spaces(t, n, 9), 9)))
		})
	}
	e := startExporter(t)
	for _, probes := range []string{"default,-packetloss,-tcpreset,-tcpretrans,-biolatency", "default", "all,-virtcmdlatency"} {
		d, _ := daemon(t, probes, "1s")
		for range 10 {
			scrape(t, e)
			time.Sleep(300 * time.Millisecond)
		}
		t.Logf("resident memory without pods, probes %s / node_exporter's: %.2f", probes, residentOf(t, d)/residentOf(t, e.Process))
		d.Stop()
	}
}

// tool is a program that hooks into the kernel. Its process is ready when its hooks
// are attached.
type tool struct {
	name  string
	start func(t testing.TB) *testkit.Process // nil if it does not work on this kernel
}

func ours(probes string) tool {
	return tool{"nodeskoop " + probes, func(t testing.TB) *testkit.Process {
		p, _ := daemon(t, probes, "1s")
		return p
	}}
}

// script is a bpftrace program. It uses only tracepoints, which any kernel allows.
func script(name, text string) tool {
	return tool{"bpftrace: " + name, func(t testing.TB) *testkit.Process {
		p := runTraced(t, "bpftrace", "-e", text+` BEGIN { printf("attached\n"); }`)
		if !p.Ready(t, func() bool { return strings.Contains(p.Log.String(), "attached\n") }) {
			t.Logf("bpftrace (%s) does not run on this kernel: %s", name, p.Log)
			return nil
		}
		return p
	}}
}

// packaged is a tool of Debian's libbpf-tools or bpfcc-tools. It prints nothing when it
// is ready, so readiness is read from the kernel's list of programs.
func packaged(path string, args ...string) tool {
	name := strings.TrimPrefix(path, "/usr/sbin/")
	return tool{name + " " + strings.Join(args, " "), func(t testing.TB) *testkit.Process {
		if _, err := os.Stat(path); err != nil {
			t.Logf("%s: not installed here", name)
			return nil
		}
		p := runTraced(t, path, args...)
		if !p.Ready(t, func() bool { return holdsPrograms(p.PID()) }) {
			out := strings.TrimSpace(p.Log.String())
			if i := strings.LastIndexByte(out, '\n'); i >= 0 {
				out = out[i+1:]
			}
			t.Logf("%s does not run on this kernel: %s", name, out)
			return nil
		}
		time.Sleep(200 * time.Millisecond) // time from loading to attaching
		return p
	}}
}

func holdsPrograms(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, _ := os.ReadDir(dir)
	for _, fd := range fds {
		if to, _ := os.Readlink(dir + "/" + fd.Name()); strings.Contains(to, "bpf-prog") || strings.Contains(to, "bpf_link") || strings.Contains(to, "perf_event") {
			return true
		}
	}
	return false
}

// compareHooks compares how much probes slow down traffic with tools that hook into
// the same functions, and with no hooks.
func compareHooks(t *testing.T, rounds int) {
	l := newLink(t)
	for _, group := range [][]tool{
		{
			ours("packetloss,tcpreset,tcpretrans,biolatency"),
			script("drops, resets, retransmissions, block I/O", `tracepoint:skb:kfree_skb { @drop[args->reason] = count(); }
				tracepoint:tcp:tcp_send_reset { @sent = count(); } tracepoint:tcp:tcp_receive_reset { @received = count(); }
				tracepoint:tcp:tcp_retransmit_skb { @again = count(); }
				tracepoint:block:block_io_start { @io[args->dev, args->sector] = nsecs; }
				tracepoint:block:block_io_done /@io[args->dev, args->sector]/ { @us = hist((nsecs - @io[args->dev, args->sector]) / 1000); delete(@io[args->dev, args->sector]); }`),
			packaged("/usr/sbin/tcpretrans-bpfcc"), packaged("/usr/sbin/tcpdrop-bpfcc"), packaged("/usr/sbin/biosnoop"),
		},
		{
			ours("net_softirq"),
			script("softirqs", `tracepoint:irq:softirq_raise { @raised[cpu, args->vec] = nsecs; }
				tracepoint:irq:softirq_entry /@raised[cpu, args->vec]/ { @wait = hist(nsecs - @raised[cpu, args->vec]); delete(@raised[cpu, args->vec]); @in[cpu, args->vec] = nsecs; }
				tracepoint:irq:softirq_exit /@in[cpu, args->vec]/ { @ran = hist(nsecs - @in[cpu, args->vec]); delete(@in[cpu, args->vec]); }`),
			packaged("/usr/sbin/softirqs", "-d", "3600"), packaged("/usr/sbin/softirqs-bpfcc", "-d", "3600"),
		},
		{
			ours("netiftxlatency"),
			script("queue and driver", `tracepoint:net:net_dev_queue { @queued[args->skbaddr] = nsecs; }
				tracepoint:net:net_dev_start_xmit /@queued[args->skbaddr]/ { @wait = hist(nsecs - @queued[args->skbaddr]); delete(@queued[args->skbaddr]); @out[args->skbaddr] = nsecs; }
				tracepoint:net:net_dev_xmit /@out[args->skbaddr]/ { @took = hist(nsecs - @out[args->skbaddr]); delete(@out[args->skbaddr]); }`),
		},
		{ours("kernellatency")}, {ours("socketlatency")}, {ours("flow")},
		{ours("all,-virtcmdlatency")},
	} {
		var cpu, udp, stream = map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
		var rate = map[string][]float64{}
		working := []tool{}
		for _, x := range group {
			if p := x.start(t); p != nil {
				p.Stop()
				working = append(working, x)
			}
		}
		measure := func() (rr, dg turn, bytes float64) {
			rr = traffic(t, 150*time.Millisecond, l.requests)
			dg = traffic(t, 150*time.Millisecond, l.datagrams)
			return rr, dg, l.stream(t)
		}
		measure()
		for range rounds {
			for _, x := range working {
				rr0, dg0, st0 := measure()
				p := x.start(t)
				rr, dg, st := measure()
				p.Stop()
				cpu[x.name] = append(cpu[x.name], rr.cpu/rr0.cpu)
				rate[x.name] = append(rate[x.name], rr.rate/rr0.rate)
				udp[x.name] = append(udp[x.name], dg.cpu/dg0.cpu)
				stream[x.name] = append(stream[x.name], st/st0)
			}
		}
		for _, x := range working {
			t.Logf("%s", x.name)
			t.Logf("    CPU of a TCP request %s, of a datagram %s; kept: requests per second %s, iperf3 bytes per CPU second %s",
				ratioOf(cpu[x.name]), ratioOf(udp[x.name]), ratioOf(rate[x.name]), ratioOf(stream[x.name]))
		}
	}
}

// stream returns the bytes that iperf3 transfers over one TCP connection per second
// of CPU time of both ends.
func (l *link) stream(t testing.TB) float64 {
	t.Helper()
	server := exec.Command("iperf3", "-s", "-1", "-p", "7100")
	var err error
	l.b.Do(func() { err = server.Start() })
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	var perCPU float64
	testkit.Await(t, func() error {
		out, err := l.a.Try("iperf3", "-c", "10.0.0.2", "-p", "7100", "-n", "150M", "-J")
		var r struct {
			End struct {
				Received struct {
					Bytes   float64 `json:"bytes"`
					Seconds float64 `json:"seconds"`
				} `json:"sum_received"`
				CPU struct {
					Host   float64 `json:"host_total"`
					Remote float64 `json:"remote_total"`
				} `json:"cpu_utilization_percent"`
			} `json:"end"`
		}
		if err == nil && json.Unmarshal([]byte(out), &r) == nil && r.End.Received.Bytes > 0 {
			if cpu := (r.End.CPU.Host + r.End.CPU.Remote) / 100 * r.End.Received.Seconds; cpu > 0 {
				perCPU = r.End.Received.Bytes / cpu
				return nil
			}
		}
		return fmt.Errorf("iperf3: %v\n%s", err, out)
	})
	return perCPU
}

// compareFlood: one thread loses packets as fast as it can. How many losses are
// accounted for, and what does each cost the sender and the tool?
func compareFlood(t *testing.T) {
	l := newLink(t)
	l.a.Sysctl("net/ipv4/icmp_ratelimit", "0")
	const length = 2 * time.Second
	caused := func() uint64 {
		for _, line := range strings.Split(l.b.File("/proc/net/snmp"), "\n") {
			if f := strings.Fields(line); len(f) > 2 && f[0] == "Udp:" && f[1] != "InDatagrams" {
				n, _ := strconv.ParseUint(f[2], 10, 64)
				return n // NoPorts
			}
		}
		t.Fatal("no Udp line in /proc/net/snmp")
		return 0
	}
	base := traffic(t, length/4, l.losses)
	flood := func(name string, p *testkit.Process, counted func() float64) {
		before, from := caused(), counted()
		cpu := cpuOf(t, p)
		with := traffic(t, length, l.losses)
		n := float64(caused() - before)
		used := float64(cpuOf(t, p) - cpu)
		time.Sleep(2500 * time.Millisecond) // wait for packets that are under way
		got := counted() - from
		t.Logf("%s: %.0f losses in %v, of which it told or counted %.1f %%; a loss cost its sender %.2f times as much CPU, and the watcher %.0f %% of that", name, n, length, got/n*100, with.cpu/base.cpu, used/n/with.cpu*100)
	}
	// Losses elsewhere on the machine do not belong to the observed namespace.
	d, file := daemon(t, "packetloss", "1s", fmt.Sprintf("host_netns = '%s'\n", l.b.Path))
	flood("nodeskoop packetloss", d, func() float64 { return metric(t, file, "kubeskoop_packetloss_total") })
	d.Stop()
	for name, action := range map[string]string{
		"a line each": `{ printf("lost %d\n", args->reason); }`,
		"counts only": `{ @lost = count(); } interval:ms:500 { print(@lost); }`,
	} {
		p := runTraced(t, "bpftrace", "-e", `BEGIN { printf("attached\n"); } tracepoint:skb:kfree_skb `+action)
		if !p.Ready(t, func() bool { return strings.Contains(p.Log.String(), "attached\n") }) {
			t.Fatalf("bpftrace: %s", p.Log)
		}
		flood("bpftrace (the whole node), "+name, p, func() float64 {
			out := p.Log.String()
			if !strings.Contains(action, "@lost") {
				return float64(strings.Count(out, "\nlost "))
			}
			at := strings.LastIndex(out, "@lost: ")
			if at < 0 {
				return 0
			}
			n, _ := strconv.ParseFloat(strings.Fields(out[at:])[1], 64)
			return n
		})
		p.Stop()
	}
}
