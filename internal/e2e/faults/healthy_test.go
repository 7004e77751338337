package faults

import (
	"fmt"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/loopdev"
	"nodeskoop/internal/testkit/pods"
)

// settle starts pods that do what pods in good health do: a web server that is asked
// over connections that last and over fresh ones, look-ups, pings, a disk that is
// written, log files, an idle pod, and a server beyond. They are there from the first
// fault to the last, so that no finding may be about them.
func (l *lab) settle(t *testing.T) {
	s := &scene{l, t, 900}
	web, dns := s.server("-drain"), s.pod("dns", "dns", ":53").listens(53)
	client := s.pod("busy", "ask", "-every", "100ms", "-askers", "4", "-keep", "200", web.at(8080))
	client.act(pods.ContainerSpec{Name: "fresh"}, "ask", "-fresh", "-every", "250ms", net.JoinHostPort(web.v6().String(), "8080"))
	client.act(pods.ContainerSpec{Name: "names"}, "lookup", "-every", "200ms", dns.at(53))
	client.act(pods.ContainerSpec{Name: "beyond"}, "ask", "-every", "100ms", "-size", "4096", "-keep", "500", s.outsider("serve", ":%d"))
	disk := loopdev.New(t)
	db := s.pod("db")
	db.act(pods.ContainerSpec{Name: "main", Devices: []string{disk}}, "read", "-every", "100ms", disk)
	s.pod("idle")
	testkit.Start(t, client.command("while sleep 1; do busybox ping -c 1 -W 5 "+dns.v4().String()+" >/dev/null; done"))
	file := filepath.Join(t.TempDir(), "log")
	testkit.Start(t, l.node.command(fmt.Sprintf("while sleep 0.2; do seq 1000 >> %s; mv %[1]s %[1]s.1; done", file)))
}

// healthy runs diagnose while a server is replaced, as a rolling restart does: the
// new one is asked whether it is ready before it listens, and the old one ends once
// its last connection has.
func (l *lab) healthy(t *testing.T) diagnosis {
	s := &scene{l, t, 901}
	old := s.server("-drain")
	next := s.pod("next", "serve", "-late", "2s", ":8080")
	s.pod("client", "ask", "-follow", "-every", "50ms", "-askers", "2", "-keep", "40", old.at(8080), next.at(8080))
	go func() {
		time.Sleep(4 * time.Second)
		_ = syscall.Kill(old.Container("main").PID, syscall.SIGTERM)
	}()
	// A readiness check is refused until the server listens.
	testkit.Start(t, l.node.command(fmt.Sprintf("while ! echo > /dev/tcp/%s/8080; do sleep 0.5; done 2>/dev/null", next.v4())))
	return l.diagnose(t)
}

func (p *pod) v6() (a net.IP) {
	for _, x := range p.Addrs {
		if x.Is6() {
			return x.AsSlice()
		}
	}
	return nil
}
