package install

import (
	"strconv"
	"strings"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/pods"
)

// liveLimits has limits of the kernel reached: those of the table of
// connections, of a CPU's backlog and of TCP's memory. Then a drop-in keeps the
// daemon from what one of its probes needs.
func liveLimits(h *healthy, d time.Duration) {
	h.Helper()
	until, lasts := h.parts(time.Now(), d)
	storm, hoard := h.pod("trouble", "storm", false, nil), h.pod("trouble", "hoard", false, nil)
	until(5)
	const from, full, to = 5, 25, 28
	h.run("sh", "-c", "for f in udp_timeout udp_timeout_stream; do echo 7200 > /proc/sys/net/netfilter/nf_conntrack_$f; done")
	h.run("nft", "add table inet t; add chain inet t out { type filter hook output priority 0; }; add rule inet t out ct state invalid counter")
	track := func(percent int) {
		h.Log(strings.TrimSpace(h.run("/srv"+causeProgram, "track", strconv.Itoa(percent))))
	}
	track(90)
	h.due("ConntrackTableFills", lasts(from, full), 5*time.Minute)
	h.storm(storm, lasts(from, to))
	h.due("ReceiveBacklogDrops", lasts(from, to), 5*time.Minute)
	until(full)
	track(100)
	h.run("/srv"+causeProgram, "forget") // or Prometheus cannot connect either
	h.due("ConntrackDrops", lasts(full, 60), time.Minute)
	h.Log(strings.TrimSpace(h.inNetns(hoard, "hoard")))
	h.due("TCPMemoryPressure", lasts(full, 60), time.Minute)
	until(to)
	h.run("nft", "delete table inet t")

	h.override("[Service]\nRestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX\n")
	h.sampled()
	if h.downs() == 0 {
		h.Fatal("no probe is down without netlink")
	}
	h.due("NodeskoopProbeDown", lasts(to, 60), 10*time.Minute)
	until(60)
}

// liveGone has the daemon stopped soon, and nobody starts it again.
func liveGone(h *healthy, d time.Duration) {
	h.Helper()
	until, _ := h.parts(time.Now(), d)
	until(3)
	h.sampled()
	h.run("systemctl", "stop", unit)
	// The alert looks back for an hour: it sees metrics there from then on.
	h.due("NodeskoopGone", d-time.Hour, 15*time.Minute)
	until(60)
	h.run("systemctl", "start", unit)
}

// parts divides a time by sixty: until waits for the end of one, and lasts is how
// long some of them are.
func (h *healthy) parts(begin time.Time, d time.Duration) (until func(sixtieth int), lasts func(from, to int) time.Duration) {
	return func(sixtieth int) { time.Sleep(time.Until(begin.Add(d * time.Duration(sixtieth) / 60))) },
		func(from, to int) time.Duration { return d * time.Duration(to-from) / 60 }
}

// due says of an alert that it has to fire, if its trouble lasts as long as the
// alert's range and "for", and some more: a scrape and an evaluation.
func (h *healthy) due(alert string, lasts, needs time.Duration) {
	if lasts >= needs+2*time.Minute {
		h.must = append(h.must, alert)
	} else {
		h.maybe = append(h.maybe, alert)
	}
}

// downs is how many probes the textfile calls down.
func (h *healthy) downs() int {
	h.Helper()
	up, n := parse(h.T, []byte(h.read(textfile))).value("nodeskoop_probe_up")
	return n - int(up)
}

// storm has a bridge flood bursts of broadcasts to many ports in a pod's
// namespace: more than the backlog of a CPU holds.
func (h *healthy) storm(p *pods.Pod, lasts time.Duration) {
	h.Helper()
	h.in(p, "sh", "-ec", `
		echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
		ip link add storm0 type veth peer name storm1
		ip link add storms type bridge
		ip link set storm1 master storms up
		for i in $(seq 40); do
			ip link add port$i type veth peer name end$i
			ip link set port$i master storms up
			ip link set end$i up
		done
		ip address add `+stormAddress+`/24 dev storm0
		ip link set storm0 gso_max_segs 1 up
		ip link set storms up`)
	cmd := h.command("nsenter", "-t", strconv.Itoa(p.PID), "-n", "/srv"+causeProgram, "storm", strconv.Itoa(int(lasts/time.Second)))
	testkit.Start(h.T, cmd)
}
