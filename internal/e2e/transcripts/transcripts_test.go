// Package transcripts proves that docs/troubleshooting.md shows real output. It
// causes the faults of the page in real pods, runs the page's commands, checks that
// the output contains the facts on which the page's conclusions rest, and writes
// the output into the page.
//
// `make transcripts` runs it, by NODESKOOP_TRANSCRIPTS=1, after make build. It is
// not part of `make test`, as it changes the page. It needs root, containerd with
// its tools and node_exporter (make deps), and nft, ss, nsenter, conntrack, losetup
// and nstat.
package transcripts

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/exporter"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
	"nodeskoop/internal/testkit/tracked"
)

const page = "../../../docs/troubleshooting.md"

// node is the machine of the transcripts: a containerd with pods, in a network
// namespace that stands for the host's.
type node struct {
	t   *testing.T
	c   *pods.Containerd
	dir string
	env []string
}

func newNode(t *testing.T) *node {
	need.Root(t)
	need.Program(t, "nft", "ss", "nsenter", "conntrack", "losetup", "nstat")
	bin, err := filepath.Abs(binDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "nodeskoop")); err != nil {
		t.Fatalf("%v; run make build", err)
	}
	dir, err := os.MkdirTemp("", "node-7-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, c: pods.Start(t), dir: dir}
	config := filepath.Join(n.dir, "nodeskoop.toml")
	text := fmt.Sprintf("node_name = \"node-7\"\nhost_netns = %q\n[pods]\nsockets = [%q]\n[textfile]\ndir = %q\n",
		n.c.Netns, n.c.Socket, n.dir)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	n.env = append(os.Environ(), "NODESKOOP_CONFIG="+config, "PATH="+bin+":"+os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC")
	return n
}

func (n *node) pod(name string, command ...string) *pods.Pod {
	return n.c.RunPod(pods.PodSpec{Namespace: "shop", Name: name,
		Containers: []pods.ContainerSpec{{Name: "main", Command: command}}})
}

// server is pod for a program that listens: it returns when the program does.
func (n *node) server(name, network string, port int, command ...string) *pods.Pod {
	n.t.Helper()
	p := n.pod(name, command...)
	testkit.Eventually(n.t, name+" listens", func() bool {
		out, err := execIn(p.PID, fmt.Sprintf("ss -Hln --%s 'sport = :%d'", network, port))
		return err == nil && out != ""
	})
	return p
}

// reader is a pod whose process, this test binary, reads datagrams.
func (n *node) reader(name string, port int) *pods.Pod {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	// The container can read this folder, unlike the test's own.
	dir, err := os.MkdirTemp(n.dir, "")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	program := filepath.Join(dir, "dnsserver")
	b, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(program, b, 0o755)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	p := n.c.RunPod(pods.PodSpec{Namespace: "shop", Name: name, Containers: []pods.ContainerSpec{{
		Name: "main", Command: []string{"/bin/dnsserver", serve, strconv.Itoa(port)}, Mounts: map[string]string{"/bin/dnsserver": program}}}})
	testkit.Eventually(n.t, name+" listens", func() bool {
		out, err := execIn(p.PID, fmt.Sprintf("ss -Hln --udp 'sport = :%d'", port))
		return err == nil && out != ""
	})
	return p
}

// serve, as the first argument, makes the test binary read datagrams.
const serve = "serve-datagrams"

func TestMain(m *testing.M) {
	if len(os.Args) != 3 || os.Args[1] != serve {
		os.Exit(testkit.Main(m))
	}
	c, err := net.ListenPacket("udp4", ":"+os.Args[2])
	for b := make([]byte, 2048); err == nil; {
		_, _, err = c.ReadFrom(b)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func v4(t *testing.T, p *pods.Pod) netip.Addr {
	for _, a := range p.Addrs {
		if a.Is4() {
			return a
		}
	}
	t.Fatalf("%s has no IPv4 address", p.Name)
	return netip.Addr{}
}

// start runs a command line on the node.
func (n *node) start(line string, stdout, stderr *testkit.Log) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command("bash", "-c", line)
	cmd.Env = n.env
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.c.Do(cmd.Start); err != nil {
		n.t.Fatalf("%s: %v", line, err)
	}
	return cmd
}

// transcript is what a user of the node sees.
type transcript struct {
	*node
	name string
	on   string // prefix of commands, if the user is in another PID namespace
	b    strings.Builder
}

func (n *node) transcript(name string) *transcript { return &transcript{node: n, name: name} }

// run types a command and records its output.
func (x *transcript) run(line string) string {
	x.t.Helper()
	var out, errs testkit.Log
	typed := line
	if x.on != "" {
		typed = x.on + " bash -c '" + strings.ReplaceAll(line, "'", `'\''`) + "'"
	}
	cmd := x.start(typed, &out, &errs)
	if err := cmd.Wait(); err != nil && out.String() == "" {
		x.t.Fatalf("%s: %v\n%s", line, err, errs.String())
	}
	fmt.Fprintf(&x.b, "$ %s\n%s", line, out.String())
	return out.String()
}

// watch types a command that prints events until Ctrl-C, causes the events, and
// records the first lines.
func (x *transcript) watch(line string, lines int, cause func()) {
	x.t.Helper()
	var out, errs testkit.Log
	cmd := x.start("exec "+line, &out, &errs)
	testkit.Await(x.t, func() error {
		if !strings.Contains(errs.String(), "Watching ") {
			return fmt.Errorf("%s does not watch: %s", line, &errs)
		}
		return nil
	})
	cause()
	testkit.Await(x.t, func() error {
		if strings.Count(out.String(), "\n") < lines {
			return fmt.Errorf("%s prints fewer than %d lines:\n%s%s", line, lines, &out, &errs)
		}
		return nil
	})
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	shown := strings.SplitAfter(out.String(), "\n")
	fmt.Fprintf(&x.b, "$ %s\n%s^C\n", line, strings.Join(shown[:min(len(shown), lines)], ""))
}

// want checks that the transcript contains what it is meant to show.
func (x *transcript) want(patterns ...string) {
	x.t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(x.b.String()) {
			x.t.Errorf("%s shows no %s:\n%s", x.name, p, x.b.String())
		}
	}
}

// write puts the transcript between its marks in the page.
func (x *transcript) write() {
	x.t.Helper()
	if x.t.Failed() {
		return
	}
	b, err := os.ReadFile(page)
	if err != nil {
		x.t.Fatal(err)
	}
	begin, end := "<!-- transcript "+x.name+" -->\n", "<!-- /transcript "+x.name+" -->\n"
	before, rest, ok := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		x.t.Fatalf("%s has no marks %q", page, begin)
	}
	text := before + begin + "```console\n" + x.b.String() + "```\n" + end + after
	if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
		x.t.Fatal(err)
	}
}

// signal stops or continues the processes of a container except its first, or the
// first if it is alone.
func signal(t *testing.T, k *pods.Container, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(k.PID, sig); err != nil {
		t.Fatal(err)
	}
}

// TestTranscripts causes the faults of docs/troubleshooting.md and writes the
// output of the tools into it.
func TestTranscripts(t *testing.T) {
	need.Target(t, "transcripts", os.Getenv("NODESKOOP_TRANSCRIPTS") != "")
	n := newNode(t)
	client := n.pod("client-0")
	exec := client.Container("main").Exec
	for _, s := range []struct {
		name string
		f    func(*testing.T, *transcript)
	}{
		{"vanish", func(t *testing.T, x *transcript) {
			web := n.server("web-0", "tcp", 8080, "httpd", "-f", "-p", "8080")
			rules := `nft 'add table inet np; add chain inet np input { type filter hook input priority 0; };` +
				` add rule inet np input tcp dport 8080 counter drop comment "deny-all"'`
			if out, err := execIn(web.PID, rules); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			x.watch("nodeskoop events --event PacketLoss --pod shop/web-0", 2, func() {
				exec("sh", "-c", fmt.Sprintf("nc -w 3 %s 8080 </dev/null; true", v4(t, web)))
			})
			x.run("nodeskoop pods | grep -E 'POD|web-0'")
			x.run(fmt.Sprintf("nsenter -t %d -n nft list ruleset", web.PID))
			x.want("NETFILTER_DROP", "deny-all")
		}},
		{"p99", func(t *testing.T, x *transcript) {
			api := n.server("api-0", "tcp", 8080, "nc", "-ll", "-p", "8080", "-e", "cat")
			talk := client.AddContainer(pods.ContainerSpec{Name: "talk",
				Command: []string{"sh", "-c", fmt.Sprintf("while sleep 0.05; do echo hello; done | nc %s 8080", v4(t, api))}})
			defer talk.Stop()
			var cat int
			testkit.Eventually(n.t, "the connection has a process", func() bool {
				cat = childOf(api.Container("main").PID)
				return cat != 0
			})
			x.watch("nodeskoop events --probe socketlatency --pod shop/api-0", 2, func() {
				for range 2 {
					// As during a long garbage collection, or with an exhausted CPU
					// limit.
					_ = syscall.Kill(cat, syscall.SIGSTOP)
					time.Sleep(350 * time.Millisecond)
					_ = syscall.Kill(cat, syscall.SIGCONT)
					time.Sleep(700 * time.Millisecond)
				}
			})
			x.want("SOCKETLAT_READSLOW", "cat")
		}},
		{"resets", func(t *testing.T, x *transcript) {
			db := n.server("db-0", "tcp", 5432, "nc", "-ll", "-p", "5432", "-e", "sleep", "0.2")
			x.watch("nodeskoop events --probe tcpreset --pod shop/db-0", 2, func() {
				exec("sh", "-c", fmt.Sprintf("(echo select; sleep 1) | nc %s 5432; true", v4(t, db)))
			})
			x.run("nodeskoop collect --probe tcpext | grep -E 'abortonclose.*db-0'")
			x.want("TCPRESET_ACTIVE", "TCPRESET_RECEIVE", `abortonclose.*db-0.* 1\b`)
		}},
		{"dns", func(t *testing.T, x *transcript) {
			dns := n.reader("dns-0", 53)
			send := func(count int) {
				out, err := execIn(client.PID, fmt.Sprintf("for i in $(seq %d); do echo query > /dev/udp/%s/53; done", count, v4(t, dns)))
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			signal(t, dns.Container("main"), syscall.SIGSTOP)
			x.watch("nodeskoop events --event PacketLoss --pod shop/dns-0", 2, func() { send(1200) })
			x.run("nodeskoop collect --probe udp | grep -E 'udp_(indatagrams|rcvbuferrors).*dns-0'")
			x.run(fmt.Sprintf("nsenter -t %d -n ss -uanmp", dns.PID))
			signal(t, dns.Container("main"), syscall.SIGCONT)
			x.want("SOCKET_RCVBUFF", "rcvbuferrors.* [1-9]")
		}},
		{"conntrack", func(t *testing.T, x *transcript) {
			file := filepath.Join(n.dir, "connections")
			if err := os.WriteFile(file, []byte(tracked.Established(tracked.Limit(t))), 0o600); err != nil {
				t.Fatal(err)
			}
			rules := "nft 'add table inet nat; add chain inet nat post { type nat hook postrouting priority 100; }; add rule inet nat post masquerade'; conntrack -R " + file + " >/dev/null 2>&1 || true" // the last ones may find no room
			var out testkit.Log
			if err := n.start(rules, &out, &out).Wait(); err != nil {
				t.Fatalf("%v: %s", err, out.String())
			}
			x.watch("nodeskoop events --event PacketLoss --pod host", 2, func() {
				var out testkit.Log
				_ = n.start(fmt.Sprintf("for i in 1 2 3 4 5; do busybox ping -c 1 -W 1 %s; done", v4(t, client)), &out, &out).Wait()
			})
			x.run("nodeskoop collect --probe conntrack | grep -E 'conntrack_(entries|maxentries|drop|earlydrop)\\{'")
			x.run("conntrack -C; sysctl net.netfilter.nf_conntrack_max")
			var ignore testkit.Log
			_ = n.start("conntrack -F; nft delete table inet nat", &ignore, &ignore).Wait()
			x.want("nf_hook_slow", "conntrack_drop.* [1-9]")
		}},
		{"accept", func(t *testing.T, x *transcript) {
			web := n.server("web-1", "tcp", 8080, "nc", "-ll", "-p", "8080", "-e", "cat")
			signal(t, web.Container("main"), syscall.SIGSTOP)
			x.watch("nodeskoop events --event TCPRetrans --pod shop/web-1", 2, func() {
				for range 6 {
					client.AddContainer(pods.ContainerSpec{Name: "c" + strconv.FormatInt(time.Now().UnixNano(), 36),
						Command: []string{"sh", "-c", fmt.Sprintf("(echo hello; sleep 9) | nc -w 9 %s 8080", v4(t, web))}})
				}
			})
			x.run("nodeskoop collect --probe tcpext | grep -E 'listen(drops|overflows).*web-1'")
			x.run(fmt.Sprintf("nsenter -t %d -n ss -ltn", web.PID))
			signal(t, web.Container("main"), syscall.SIGCONT)
			x.want("listenoverflows.* [1-9]")
		}},
		{"bandwidth", func(t *testing.T, x *transcript) {
			sink := n.server("sink-0", "tcp", 9000, "sh", "-c", "nc -ll -p 9000 -e cat >/dev/null")
			greedy := n.pod("batch-0", "sh", "-c", fmt.Sprintf("while true; do dd if=/dev/zero bs=64k count=40000 2>/dev/null | nc %s 9000 >/dev/null; done", v4(t, sink)))
			x.run("nodeskoop top --once --sort tx_bytes")
			x.run("nodeskoop collect --probe flow --duration 2s | grep ^kubeskoop_flow_bytes | sort -g -k 2 | tail -n 2")
			greedy.Stop()
			x.want("batch-0")
		}},
		{"disk", func(t *testing.T, x *transcript) {
			lower := loopDevice(t, filepath.Join(n.dir, "disk.img"))
			upper := loopDevice(t, lower)
			db := n.c.RunPod(pods.PodSpec{Namespace: "shop", Name: "db-1", Containers: []pods.ContainerSpec{{Name: "main", Devices: []string{upper}}}})
			slowDown(t, lower, db.Container("main").PID)
			x.watch("nodeskoop events --probe biolatency --pod shop/db-1", 2, func() {
				db.Container("main").Exec("dd", "if="+upper, "of=/dev/null", "bs=256k", "count=12", "iflag=direct")
			})
			x.run(fmt.Sprintf("losetup --list --noheadings --output NAME,BACK-FILE %s", upper))
			x.want("BIOLAT_100MS", "db-1")
		}},
		{"softirq", func(t *testing.T, x *transcript) {
			gw := n.reader("gw-0", 53)
			rules := filepath.Join(n.dir, "rules")
			var w strings.Builder
			w.WriteString("table inet np {\n chain input {\n  type filter hook input priority 0;\n")
			for i := range 60000 {
				fmt.Fprintf(&w, "  ip saddr 172.%d.%d.%d drop\n", 16+i>>16, i>>8&255, i&255)
			}
			w.WriteString(" }\n}\n")
			if err := os.WriteFile(rules, []byte(w.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			// Another CPU receives the pod's packets, as with a multi-queue NIC.
			setUp := "nft -f " + rules + " && unshare -m sh -c 'mount -t sysfs sysfs /sys && mount -o remount,rw /sys && echo 2 > /sys/class/net/eth0/queues/rx-0/rps_cpus'"
			if out, err := execIn(gw.PID, setUp); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			x.watch("nodeskoop events --probe net_softirq", 3, func() {
				out, err := execIn(client.PID, fmt.Sprintf("for i in $(seq 4000); do echo query > /dev/udp/%s/53; done", v4(t, gw)))
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			})
			x.run("cat /proc/net/softnet_stat | cut -c 1-44")
			x.run(fmt.Sprintf("nsenter -t %d -n nft list ruleset | wc -l", gw.PID))
			x.want("NETSOFTIRQ_EXCUTE_(SLOW|100MS)")
		}},
		{"missing", func(t *testing.T, x *transcript) {
			need.Program(t, exporter.Program)
			other := filepath.Join(n.dir, "textfiles")
			if err := os.Mkdir(other, 0o755); err != nil {
				t.Fatal(err)
			}
			var out testkit.Log
			// Hide other exporters that run on this machine.
			e := n.start("exec unshare --pid --fork --kill-child --mount-proc "+exporter.Program+" --web.listen-address=127.0.0.1:0 --collector.textfile.directory="+other, &out, &out)
			defer func() { _ = e.Process.Kill(); _ = e.Wait() }()
			testkit.Eventually(n.t, "node_exporter listens", func() bool { return exporter.Address(out.String()) != "" })
			config := filepath.Join(n.dir, "here.toml")
			if err := os.WriteFile(config, fmt.Appendf(nil, "[textfile]\ndir = %q\n", n.dir), 0o644); err != nil {
				t.Fatal(err)
			}
			x.on = fmt.Sprintf("nsenter -t %d -p -m env NODESKOOP_CONFIG=%s", childOf(e.Process.Pid), config)
			x.run("nodeskoop check | grep -iE 'node_exporter|textfile'")
			x.want("textfiles")
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			n.t = t
			x := n.transcript(s.name)
			s.f(t, x)
			x.write()
			if testing.Verbose() {
				t.Logf("\n%s", x.b.String())
			}
		})
	}
}

// execIn runs a command line in the network namespace of a process.
func execIn(pid int, line string) (string, error) {
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(pid), "-n", "bash", "-c", line).CombinedOutput()
	return string(out), err
}

// childOf returns a child of a process; 0 if it has none.
func childOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) == 0 {
		return 0
	}
	child, _ := strconv.Atoi(fields[0])
	return child
}

// loopDevice creates a loop device backed by a device, or by a file, which it creates.
func loopDevice(t *testing.T, over string) string {
	t.Helper()
	if !strings.HasPrefix(over, "/dev/") {
		if err := os.WriteFile(over, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(over, 16<<20); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=off", over).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup over %s: %v: %s", over, err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() })
	return dev
}

// slowDown limits a device to four reads per second for a process's group, on whose
// behalf the upper device reads.
func slowDown(t *testing.T, dev string, pid int) {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(dev, &stat); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\d+:blkio:(.*)$`).FindStringSubmatch(string(b))
	need.Kernel(t, m != nil, "no blkio controller of cgroup v1 to slow a device down")
	throttle := filepath.Join("/sys/fs/cgroup/blkio", m[1], "blkio.throttle.read_iops_device")
	if err := os.WriteFile(throttle, fmt.Appendf(nil, "%d:%d 4", unix.Major(stat.Rdev), unix.Minor(stat.Rdev)), 0); err != nil {
		t.Fatal(err)
	}
}

// binDir returns the folder of the program: build, or NODESKOOP_BIN.
func binDir() string {
	if d := os.Getenv("NODESKOOP_BIN"); d != "" {
		return d
	}
	return "../../../build"
}
