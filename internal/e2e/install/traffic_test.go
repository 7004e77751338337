package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Healthy traffic. It has no timeouts that an overloaded machine could exceed: a
// client that gives up resets its connection or leaves an answer without a socket,
// and the probes look for both.
const (
	busyName    = "web.shop."
	busyPort    = 80
	requestEach = 200 * time.Millisecond
	checkEach   = 2 * time.Second
	lookupEach  = time.Second
	// How long a client keeps its connections before it opens others.
	reconnectEach = 20 * time.Second
	// How long an ending replica waits after its last connection, since a check may
	// be on its way.
	lastWords = 5 * time.Second
)

// resolve answers address queries over UDP from a file of lines "NAME ADDRESS",
// which it reads on each query.
func resolve(addr, file string) error {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	b := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		zone, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		answer, err := answerQuery(b[:n], string(zone))
		if err != nil {
			fmt.Println("a query from", from, "is bad:", err)
			continue
		}
		if _, err := c.WriteTo(answer, from); err != nil {
			fmt.Println("answer", from, ":", err)
		}
	}
}

func answerQuery(query []byte, zone string) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	m.Response, m.Authoritative = true, true
	for _, q := range m.Questions {
		for line := range strings.Lines(zone) {
			name, addr, _ := strings.Cut(strings.TrimSpace(line), " ")
			a, err := netip.ParseAddr(addr)
			if err != nil || name != q.Name.String() {
				continue
			}
			r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}}
			switch {
			case q.Type == dnsmessage.TypeA && a.Is4():
				r.Body = &dnsmessage.AResource{A: a.As4()}
			case q.Type == dnsmessage.TypeAAAA && a.Is6():
				r.Body = &dnsmessage.AAAAResource{AAAA: a.As16()}
			default:
				continue
			}
			m.Answers = append(m.Answers, r)
		}
	}
	return m.Pack()
}

// lookUp asks a resolver for the addresses of a name, with one socket per query, as
// the C library does.
func lookUp(resolver, name string) ([]netip.Addr, error) {
	var list []netip.Addr
	for i, typ := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		n, err := dnsmessage.NewName(name)
		if err != nil {
			return nil, err
		}
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(i + 1), RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: n, Type: typ, Class: dnsmessage.ClassINET}}}
		query, err := m.Pack()
		if err != nil {
			return nil, err
		}
		c, err := net.Dial("udp", resolver)
		if err != nil {
			return nil, err
		}
		b := make([]byte, 4096)
		if _, err = c.Write(query); err == nil {
			var size int
			if size, err = c.Read(b); err == nil {
				err = m.Unpack(b[:size])
			}
		}
		c.Close()
		if err != nil {
			return nil, err
		}
		for _, r := range m.Answers {
			switch body := r.Body.(type) {
			case *dnsmessage.AResource:
				list = append(list, netip.AddrFrom4(body.A))
			case *dnsmessage.AAAAResource:
				list = append(list, netip.AddrFrom16(body.AAAA))
			}
		}
	}
	return list, nil
}

// ping sends one echo request and waits for the reply.
func ping(to netip.Addr, seq int) error {
	network, local, proto := "ip4:icmp", "0.0.0.0", 1
	var typ icmp.Type = ipv4.ICMPTypeEcho
	if to.Is6() {
		network, local, proto, typ = "ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest
	}
	c, err := icmp.ListenPacket(network, local)
	if err != nil {
		return err
	}
	defer c.Close()
	id := os.Getpid()&0xff<<8 | seq&0xff
	b, err := (&icmp.Message{Type: typ, Body: &icmp.Echo{ID: id, Seq: seq & 0xffff, Data: make([]byte, 56)}}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	answer := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(answer)
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(proto, answer[:n])
		if err != nil {
			return err
		}
		if m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == id && e.Seq == seq&0xffff && from.String() == to.String() {
			return nil
		}
	}
}

// traffic is what a busy pod has done so far.
type traffic struct{ Requests, Lookups, Pings, Connections, Errors atomic.Int64 }

// String is the line that trafficOf reads.
func (t *traffic) String() string {
	return fmt.Sprintf("traffic: requests %d, lookups %d, pings %d, connections %d, errors %d",
		t.Requests.Load(), t.Lookups.Load(), t.Pings.Load(), t.Connections.Load(), t.Errors.Load())
}

func (t *traffic) fail(what string, err error) {
	t.Errors.Add(1)
	fmt.Printf("%s: %v\n", what, err)
}

// busy is a replica of a service: it answers requests and sends requests to the
// others, whose addresses it gets from the resolver. On SIGTERM it sends no more,
// answers until all connections are closed, and ends.
func busy(resolver string) error {
	var did traffic
	var connected atomic.Int64
	body := []byte(strings.Repeat("the same page again ", 100))
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				connected.Add(1)
			case http.StateClosed, http.StateHijacked:
				connected.Add(-1)
			}
		},
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", busyPort))
	if err != nil {
		return err
	}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Println("serve:", err)
			os.Exit(1)
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var clients sync.WaitGroup
	clients.Go(func() { requests(ctx, resolver, &did) })
	clients.Go(func() { checks(ctx, resolver, &did) })
	tell := time.NewTicker(5 * time.Second)
	for ctx.Err() == nil {
		select {
		case <-tell.C:
			fmt.Println(&did)
		case <-ctx.Done():
		}
	}
	clients.Wait()
	for quiet := time.Now(); time.Since(quiet) < lastWords; time.Sleep(100 * time.Millisecond) {
		if connected.Load() > 0 {
			quiet = time.Now()
		}
	}
	fmt.Println(&did)
	return server.Close()
}

// requests gets pages from the replicas over connections that it keeps. It closes
// connections to replicas that the resolver no longer names.
func requests(ctx context.Context, resolver string, did *traffic) {
	clients := map[netip.Addr]*http.Client{}
	closeAll := func() {
		for _, c := range clients {
			c.CloseIdleConnections()
		}
		clear(clients)
	}
	defer closeAll()
	own, err := ownAddrs()
	if err != nil {
		did.fail("list the own addresses", err)
		return
	}
	var targets []netip.Addr
	var looked, connected time.Time
	for i := 0; ctx.Err() == nil; i++ {
		if time.Since(looked) > lookupEach {
			addrs, err := lookUp(resolver, busyName)
			if err != nil {
				did.fail("look up "+busyName, err)
			} else {
				did.Lookups.Add(1)
				targets = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return slices.Contains(own, a) })
			}
			looked = time.Now()
			for a, c := range clients {
				if !slices.Contains(targets, a) {
					c.CloseIdleConnections()
					delete(clients, a)
				}
			}
		}
		if time.Since(connected) > reconnectEach {
			closeAll()
			connected = time.Now()
		}
		if len(targets) > 0 {
			to := targets[i%len(targets)]
			c := clients[to]
			if c == nil {
				// A connection that becomes idle after the idle ones were closed
				// closes itself.
				c = &http.Client{Transport: &http.Transport{IdleConnTimeout: lastWords, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					did.Connections.Add(1)
					return (&net.Dialer{}).DialContext(ctx, network, addr)
				}}}
				clients[to] = c
			}
			if err := request(c, to); err != nil {
				did.fail(fmt.Sprintf("request to %s", to), err)
			} else {
				did.Requests.Add(1)
			}
		}
		pause(ctx, requestEach)
	}
}

func request(c *http.Client, to netip.Addr) error {
	r, err := c.Get("http://" + netip.AddrPortFrom(to, busyPort).String() + "/")
	if err != nil {
		return err
	}
	defer r.Body.Close()
	_, err = io.Copy(io.Discard, r.Body)
	return err
}

// checks pings each replica in turn.
func checks(ctx context.Context, resolver string, did *traffic) {
	for i := 0; ctx.Err() == nil; i++ {
		targets, err := lookUp(resolver, busyName)
		if err != nil {
			did.fail("look up "+busyName, err)
		} else if did.Lookups.Add(1); len(targets) > 0 {
			if err := ping(targets[i%len(targets)], i); err != nil {
				did.fail(fmt.Sprintf("ping %s", targets[i%len(targets)]), err)
			} else {
				did.Pings.Add(1)
			}
		}
		pause(ctx, checkEach)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func ownAddrs() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	var own []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr())
		}
	}
	return own, err
}
