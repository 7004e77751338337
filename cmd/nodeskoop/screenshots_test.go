package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
	"nodeskoop/internal/testkit/terminal"
)

// inDocs runs shell commands with nodeskoop as on a node: in a mount namespace that
// has containerd's socket, the configuration and the textfile's folder at their
// usual paths.
func inDocs(t *testing.T, ctd *pods.Containerd, columns, rows int, commands string) *terminal.Terminal {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`set -e
mount -t tmpfs x /run
mkdir -p /run/containerd /run/etc/nodeskoop /run/work /run/bin /run/lib/prometheus/node-exporter /run/lib/nodeskoop
touch /run/containerd/containerd.sock /run/host
mount --bind %s /run/containerd/containerd.sock
mount --bind %s /run/host
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work x /etc
mount --bind /run/lib /var/lib
printf 'host_netns = "/run/host"\n' > /etc/nodeskoop/nodeskoop.toml
ln -s %s /run/bin/nodeskoop
PATH=/run/bin:$PATH
export STATE_DIRECTORY=/var/lib/nodeskoop
clear() { printf '\033[H\033[2J'; }
# The prompt, and what is typed.
run() { printf '\033[1;32m#\033[0m %%s\n' "$*"; "$@"; }
%s`, ctd.Socket, ctd.Netns, path, commands)
	x, err := terminal.Start(columns, rows, []string{"TZ=UTC"}, "unshare", "-m", "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	return x
}

// localVersion matches a distribution's suffix of the kernel version.
var localVersion = regexp.MustCompile(`(Linux [0-9]+\.[0-9]+\.[0-9]+)[-+][^ <\n]+`)

// TestScreenshots runs check, diagnose, events and top in a terminal beside faulty pods.
// `make screenshots` writes their screens to docs/images; otherwise the test only
// checks the text.
func TestScreenshots(t *testing.T) {
	need.Root(t)
	need.Program(t, "nft", "unshare", "nsenter", "prometheus-node-exporter")
	dir := os.Getenv("NODESKOOP_SCREENSHOTS")
	if dir == "" {
		dir = t.TempDir()
	}
	save := func(name, title string, x *terminal.Terminal) {
		t.Helper()
		for suffix, text := range map[string]string{".svg": x.SVG(title), ".txt": x.Text()} {
			if err := os.WriteFile(filepath.Join(dir, name+suffix), []byte(localVersion.ReplaceAllString(text, "$1")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}

	ctd := pods.Start(t)
	pod := func(namespace, name, command string) *pods.Pod {
		return ctd.RunPod(pods.PodSpec{Namespace: namespace, Name: name, Containers: []pods.ContainerSpec{{Name: "main", Command: []string{"sh", "-c", command}}}})
	}
	// A server that forgot all but its loopback address, and a client that asks it.
	orders := pod("shop", "orders-0", "httpd -p 127.0.0.1:8080 -h /tmp; sleep 100000")
	api := pod("shop", "api-0", fmt.Sprintf("while :; do nc -w 1 %s 8080 </dev/null; sleep 0.1; done 2>/dev/null", orders.Addrs[0]))
	x := inDocs(t, ctd, 100, 60, "clear; run nodeskoop diagnose --for 5s || true\n")
	if _, err := x.End(90 * time.Second); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"shop/orders-0", "loopback address", "shop/api-0"} {
		if !strings.Contains(x.Text(), want) {
			t.Errorf("diagnose does not show %q:\n%s", want, x.Text())
		}
	}
	save("diagnose", "nodeskoop diagnose", x)
	x.Close()
	api.Remove()
	orders.Remove()

	web := pod("shop", "web-0", "dd if=/dev/zero of=/tmp/page bs=1k count=200 2>/dev/null; httpd -p 8080 -h /tmp; sleep 100000")
	db := pod("shop", "db-0", "sleep 100000")
	pod("infra", "dns-0", "sleep 100000")
	nft := func(p *pods.Pod, rule string) {
		out, err := exec.Command("nsenter", "-t", strconv.Itoa(p.PID), "-n", "nft", "add table ip t; add chain ip t in { type filter hook input priority 0; }; add rule ip t in "+rule).CombinedOutput()
		if err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	}
	nft(web, "ip protocol icmp drop")
	// A rule on the node that closes the kubelet's port to pods.
	if out, err := exec.Command("nsenter", "--net="+ctd.Netns, "nft", "add table ip t; add chain ip t in { type filter hook input priority 0; }; add rule ip t in tcp dport 10250 drop").CombinedOutput(); err != nil {
		t.Fatalf("nft on the node: %v: %s", err, out)
	}
	nft(db, "tcp dport 5433 drop")
	webAddr, dbAddr := web.Addrs[0], db.Addrs[0]
	// The client loads pages, connects to a closed port, sends packets that a rule
	// drops, connects to an address that never answers, and holds a connection.
	pod("shop", "load-0", fmt.Sprintf(`while :; do
  wget -q -O /dev/null http://%[1]s:8080/page
  nc -w 1 %[2]s 5432 </dev/null
  ping -c 5 -i 0.1 -W 1 %[1]s >/dev/null
  nc -w 1 10.88.77.1 10250 </dev/null
  [ -e /tmp/busy ] || { touch /tmp/busy; (nc -w 4 %[2]s 5433 </dev/null; rm /tmp/busy) & }
  [ -e /tmp/held ] || { touch /tmp/held; (sleep 50 | nc %[1]s 8080; rm /tmp/held) & }
done 2>/dev/null`, webAddr, dbAddr))

	x = inDocs(t, ctd, 100, 90, `prometheus-node-exporter --web.listen-address=127.0.0.1:0 >/dev/null 2>&1 & exporter=$!
nodeskoop run >/dev/null 2>&1 & daemon=$!
until [ -e /var/lib/prometheus/node-exporter/nodeskoop.prom ]; do sleep 0.1; done
clear
run nodeskoop check || true
kill $exporter $daemon
wait
`)
	if _, err := x.End(90 * time.Second); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"probe packetloss ", "reads /var/lib/prometheus/node-exporter", "4 known", " checks: ", ", 0 failures"} {
		if !strings.Contains(x.Text(), want) {
			t.Errorf("check does not show %q:\n%s", want, x.Text())
		}
	}
	save("check", "nodeskoop check", x)
	x.Close()

	x = inDocs(t, ctd, 160, 24, "clear; run nodeskoop events --probe packetloss,tcpreset,tcpretrans --pod shop/web-0 --pod shop/db-0\n")
	if err := x.Wait(90*time.Second, func(s string) bool {
		return strings.Contains(s, "TCPRetrans") && strings.Contains(s, "PacketLoss") && strings.Contains(s, "TCPRESET_NOSOCK") && strings.Contains(s, "shop/db-0") &&
			strings.Count(s, "\n") > 20
	}); err != nil {
		t.Fatal(err)
	}
	save("events", "nodeskoop events", x)
	x.Close()

	x = inDocs(t, ctd, 150, 14, "clear; nodeskoop top --log-level error\n")
	row := func(s, name string) []string {
		for _, line := range strings.Split(s, "\n") {
			if f := strings.Fields(line); len(f) > 0 && f[0] == name {
				return f
			}
		}
		return make([]string, 20)
	}
	if err := x.Wait(90*time.Second, func(s string) bool {
		w, l := row(s, "shop/web-0"), row(s, "shop/load-0")
		return w[len(w)-1] == "NETFILTER_DROP" && l[2] != "-" && l[2] != "0" && l[3] != "-" && l[3] != "0" && l[4] != "0"
	}); err != nil {
		t.Fatal(err)
	}
	save("top", "nodeskoop top", x)
	// The page of one pod, found by name.
	if err := errors.Join(x.Resize(100, 34), x.Keys("/shop/web-0\r\r")); err != nil {
		t.Fatal(err)
	}
	if err := x.Wait(90*time.Second, func(s string) bool {
		return strings.HasPrefix(s, "shop/web-0 ") && strings.Contains(s, "from shop/load-0 to :8080") && strings.Contains(s, "LISTENS ON") && strings.Contains(s, "httpd")
	}); err != nil {
		t.Fatal(err)
	}
	save("top-pod", "nodeskoop top: one pod", x)
	if err := x.Keys("q"); err != nil {
		t.Fatal(err)
	}
	if code, err := x.End(20 * time.Second); code != 0 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
}
