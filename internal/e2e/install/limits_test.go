package install

import (
	"strconv"
	"strings"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/pods"
)

// fillConnections fills the machine's conntrack table to a share.
func (h *healthy) fillConnections(percent int) {
	h.Helper()
	h.run("sh", "-c", "for f in udp_timeout udp_timeout_stream; do echo 7200 > /proc/sys/net/netfilter/nf_conntrack_$f; done")
	h.run("nft", "add table inet t; add chain inet t out { type filter hook output priority 0; }; add rule inet t out ct state invalid counter")
	h.Log(strings.TrimSpace(h.run("/srv"+causeProgram, "track", strconv.Itoa(percent))))
}

// emptyConnections undoes fillConnections. While the table is full, Prometheus
// cannot connect either.
func (h *healthy) emptyConnections() {
	h.Helper()
	h.run("nft", "delete table inet t")
	h.run("/srv"+causeProgram, "forget")
}

// liveGone stops the daemon after an hour and does not start it again: the alert
// requires that its metrics existed continuously an hour before.
func liveGone(h *healthy, d time.Duration) {
	h.Helper()
	begin := time.Now()
	const hour = 62 * time.Minute
	time.Sleep(min(hour, d/2))
	h.sampled()
	h.run("systemctl", "stop", unit)
	h.due("NodeskoopGone", d-hour, 15*time.Minute)
	time.Sleep(time.Until(begin.Add(d)))
	h.run("systemctl", "start", unit)
}

// parts divides the remaining time by sixty: until waits for the end of a part, lasts
// returns the length of some parts.
func (h *healthy) parts(d time.Duration) (until func(sixtieth int), lasts func(from, to int) time.Duration) {
	begin := time.Now()
	return func(sixtieth int) { time.Sleep(time.Until(begin.Add(d * time.Duration(sixtieth) / 60))) },
		func(from, to int) time.Duration { return d * time.Duration(to-from) / 60 }
}

// due says that an alert must fire if its trouble lasts for the alert's range and
// "for", plus a scrape and an evaluation.
func (h *healthy) due(alert string, lasts, needs time.Duration) {
	if lasts >= needs+2*time.Minute {
		h.must = append(h.must, alert)
	} else {
		h.maybe = append(h.maybe, alert)
	}
}

// storm makes a bridge flood bursts of broadcasts to many ports in a pod's
// namespace, more than the backlog of a CPU holds.
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
