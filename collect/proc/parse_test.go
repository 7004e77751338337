package proc

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
	"nodeskoop/internal/kernel"
)

// captured reads a file of testdata from every kernel that has it.
func captured(t testing.TB, name string) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "*", name))
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata/*/%s: %v", name, err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.Split(f, "/")[1]] = b
	}
	return out
}

// parsers are all parsers of whole files. Each returns its result as text; equal results
// give equal text.
var parsers = map[string]struct {
	file  string
	parse func(b []byte) (string, error)
}{
	"tcp":    {"net/snmp", parseMIB("tcp", "snmp")},
	"udp":    {"net/snmp", parseMIB("udp", "snmp")},
	"ip":     {"net/netstat", parseMIB("ip", "netstat")},
	"tcpext": {"net/netstat", parseMIB("tcpext", "netstat")},
	"sockstat": {"net/sockstat", func(b []byte) (string, error) {
		var s sockstat
		err := s.parse("net/sockstat", "TCP:", b)
		return fmt.Sprint(s), err
	}},
	"sockstat6": {"net/sockstat6", func(b []byte) (string, error) {
		var s sockstat
		err := s.parse("net/sockstat6", "TCP6:", b)
		return fmt.Sprint(s), err
	}},
	"softnet": {"net/softnet_stat", func(b []byte) (string, error) {
		var s softnetState
		err := s.parse(b)
		return fmt.Sprint(s.processed, s.dropped, s.cpus), err
	}},
	"netdev": {"net/dev", func(b []byte) (string, error) {
		var s interfaces
		p, err := newNetdev(collect.Env{})
		if err == nil {
			err = p.(*netdev).parse(b, &s)
		}
		return fmt.Sprint(s.sum()), err
	}},
	"ipvs": {"net/ip_vs_stats", func(b []byte) (string, error) {
		v, err := parseIPVS(b)
		return fmt.Sprint(v), err
	}},
	"tcp text": {"net/tcp", func(b []byte) (string, error) {
		var t netlink.TCPTable
		err := parseTCP(&t, "net/tcp", 8, b)
		return fmt.Sprint(t), err
	}},
	"tcp6 text": {"net/tcp6", func(b []byte) (string, error) {
		var t netlink.TCPTable
		err := parseTCP(&t, "net/tcp6", 32, b)
		return fmt.Sprint(t), err
	}},
	"pid stat": {"self/stat", func(b []byte) (string, error) {
		s, err := kernel.ParseStat(b)
		return fmt.Sprint(s), err
	}},
	"pid io": {"self/io", func(b []byte) (string, error) {
		c, err := parseIO(b)
		return fmt.Sprint(c), err
	}},
}

func parseMIB(probe, file string) func([]byte) (string, error) {
	return func(b []byte) (string, error) {
		p, err := newMIB(probe, file)
		if err != nil {
			return "", err
		}
		var v [maxMIB]uint64
		err = p.parse(b, &v)
		return fmt.Sprint(v), err
	}
}

// TestTruncated cuts every captured file after every byte. The rest is either an error that
// names file and line, or ends at the end of a line.
func TestTruncated(t *testing.T) {
	for name, x := range parsers {
		for kernel, whole := range captured(t, x.file) {
			want, err := x.parse(whole)
			if err != nil {
				t.Errorf("%s: %s: %v", kernel, name, err)
				continue
			}
			for n := range whole {
				got, err := x.parse(whole[:n])
				switch {
				case err != nil && !strings.Contains(err.Error(), " line "):
					t.Fatalf("%s, %d bytes: the error %q does not name the line", name, n, err)
				case err == nil && got != want && whole[n-1] != '\n':
					t.Fatalf("%s: %s cut after %d bytes, within a line, is taken for %s", kernel, name, n, got)
				}
			}
		}
	}
}

// TestDamaged replaces every byte of a captured file: no parser panics.
func TestDamaged(t *testing.T) {
	for _, x := range parsers {
		whole := captured(t, x.file)["6.18"]
		b := bytes.Clone(whole)
		for n := range b {
			for _, c := range []byte{0, ' ', '\n', '-'} {
				b[n] = c
				_, _ = x.parse(b)
			}
			b[n] = whole[n]
		}
	}
}

// TestMIBColumns gives every value of a captured file a distinct number, and checks that
// each metric gets its own.
func TestMIBColumns(t *testing.T) {
	lacking := map[string]bool{ // missing in kernels before 4.19, 5.2 and 5.10
		"TcpExt.TCPRcvQDrop": true, "TcpExt.TCPZeroWindowDrop": true, "TcpExt.TCPWqueueTooBig": true,
	}
	for _, x := range []struct{ probe, file string }{{"tcp", "snmp"}, {"udp", "snmp"}, {"ip", "netstat"}, {"tcpext", "netstat"}} {
		for kernel, b := range captured(t, "net/"+x.file) {
			p, err := newMIB(x.probe, x.file)
			if err != nil {
				t.Fatal(err)
			}
			numbered, want := number(string(b))
			for range 2 { // the second time the layout is known
				var got [maxMIB]uint64
				if err := p.parse([]byte(numbered), &got); err != nil {
					t.Fatalf("%s: %s: %v", kernel, x.probe, err)
				}
				for i, m := range p.metrics {
					w, ok := want[m.Field]
					if !ok && !(kernel == "4.18-made" && lacking[m.Field]) {
						t.Errorf("%s does not have %s", kernel, m.Field)
					}
					if got[i] != w {
						t.Errorf("%s: %s = %d, want %d", kernel, m.Field, got[i], w)
					}
				}
			}
		}
	}
}

// number replaces the values of a MIB file by distinct numbers.
func number(text string) (out string, want map[string]uint64) {
	want = map[string]uint64{}
	lines := strings.SplitAfter(text, "\n")
	next := uint64(1) << 40
	for i := 0; i+1 < len(lines); i += 2 {
		names := strings.Fields(lines[i])
		out += lines[i] + names[0]
		for _, n := range names[1:] {
			next++
			want[strings.TrimSuffix(names[0], ":")+"."+n] = next
			out += " " + strconv.FormatUint(next, 10)
		}
		out += "\n"
	}
	return out, want
}

func TestMIBMalformed(t *testing.T) {
	for _, x := range []struct{ name, file, want string }{
		{"empty", "", "net/snmp line 1: the section Udp is missing"},
		{"another section", "UdpLite: InDatagrams\nUdpLite: 1\n", "net/snmp line 3: the section Udp is missing"},
		{"no values", "Udp: InDatagrams NoPorts\n", "net/snmp line 1: Udp has a line of names without a line of values"},
		{"values of another", "Udp: InDatagrams NoPorts\nUdpLite: 1 2\n", "net/snmp line 2: Udp has a line of names without a line of values"},
		{"too few", "Udp: InDatagrams NoPorts\nUdp: 1\n", "net/snmp line 2: Udp has 1 values under 2 names"},
		{"too many", "Udp: InDatagrams NoPorts\nUdp: 1 2 3\n", "net/snmp line 2: Udp has more values than its 2 names"},
		{"not a number", "Ip: A\nIp: x\nUdp: InDatagrams NoPorts\nUdp: 1 0x2\n", `net/snmp line 4: the value "0x2" of Udp.NoPorts is not a number`},
		{"a negative counter", "Udp: InDatagrams NoPorts\nUdp: 1 -2\n", `net/snmp line 2: the value "-2" of Udp.NoPorts is not a number`},
		{"too large", "Udp: InDatagrams NoPorts\nUdp: 1 18446744073709551616\n", `the value "18446744073709551616" of Udp.NoPorts is not a number`},
		{"twice", "Udp: NoPorts NoPorts\nUdp: 1 2\n", "net/snmp line 1: Udp names NoPorts twice"},
		{"cut", "Udp: InDatagrams NoPorts\nUdp: 1 2", `net/snmp line 2: the file ends within it: "Udp: 1 2"`},
		{"names changed", "Udp: NoPorts\nUdp: 1\n", ""},
		{"signed elsewhere", "Udp: Other NoPorts\nUdp: -1 7\n", ""},
		{"the largest", "Udp: NoPorts\nUdp: 18446744073709551615\n", ""},
	} {
		p, err := newMIB("udp", "snmp")
		if err != nil {
			t.Fatal(err)
		}
		var v [maxMIB]uint64
		if err = p.parse([]byte(x.file), &v); x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %v, want %q", x.name, err, x.want)
		}
	}
}

// TestGaugeBelowZero: CurrEstab is a sum over CPUs that are read one after another, and can
// be -1.
func TestGaugeBelowZero(t *testing.T) {
	p, err := newMIB("tcp", "snmp")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]uint64{"18446744073709551615": 0, "-1": 0, "5": 5} {
		var v [maxMIB]uint64
		if err := p.parse([]byte("Tcp: MaxConn CurrEstab\nTcp: -1 "+text+"\n"), &v); err != nil {
			t.Error(err)
		}
		for i, m := range p.metrics {
			if m.Field == "Tcp.CurrEstab" && v[i] != want {
				t.Errorf("%s is %d, want %d", text, v[i], want)
			}
		}
	}
}

func TestMIBOfAnotherProbe(t *testing.T) {
	if _, err := newMIB("netdev", "snmp"); err == nil {
		t.Error("netdev passes for a probe of the MIB")
	}
}

func TestSockstatMalformed(t *testing.T) {
	for _, x := range []struct{ file, want string }{
		{"", "net/sockstat line 1: the line TCP: is missing"},
		{"sockets: used 5\n", "net/sockstat line 2: the line TCP: is missing"},
		{"TCP: inuse\n", `net/sockstat line 1: the value "" of "inuse" is not a number`},
		{"TCP: inuse x\n", `the value "x" of "inuse" is not a number`},
		{"TCP: orphan 5\n", "it has no number of sockets in use"},
		{"TCP: inuse 5", "the file ends within it"},
		{"TCP: inuse 5 tw -1 mem 3 later 9\n", ""},
	} {
		var s sockstat
		if err := s.parse("net/sockstat", "TCP:", []byte(x.file)); x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%q: %v, want %q", x.file, err, x.want)
		}
	}
}

func TestSoftnetMalformed(t *testing.T) {
	const zeros = " 0 0 0 0 0 0 0 0 0 0 "
	for _, x := range []struct{ file, want string }{
		{"", "net/softnet_stat line 1: no line for any CPU"},
		{"1 2 3\n", "net/softnet_stat line 1: 3 columns, not at least 9"},
		{"1 2" + zeros + "0\n3 4 0 0 0 0 0 0 0\n", "net/softnet_stat line 2: 9 columns, unlike the line before"},
		{"1 x" + zeros + "0\n", `"x" is not a hexadecimal number of 32 bits`},
		{"1 123456789" + zeros + "0\n", `"123456789" is not a hexadecimal number of 32 bits`},
		{"1 2" + zeros + "0\n3 4" + zeros + "0\n", "net/softnet_stat line 2: the CPU number 0 is out of order"},
		{"1 2" + zeros + "ffffffff\n", "the CPU number 4294967295 is out of order"},
		{"1 2" + zeros + "0", "the file ends within it"},
	} {
		var s softnetState
		if err := s.parse([]byte(x.file)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%q: %v, want %q", x.file, err, x.want)
		}
		if s.processed != 0 || len(s.cpus) != 0 {
			t.Errorf("%q counts all the same: %v", x.file, s)
		}
	}
}

// TestSoftnetWithoutNumbers: older kernels list the online CPUs without their numbers. If
// one goes offline, the sums do not jump.
func TestSoftnetWithoutNumbers(t *testing.T) {
	const zeros = " 0 0 0 0 0 0 0 0 0\n"
	var s softnetState
	for i, x := range []struct {
		file string
		want uint64
	}{
		{"10 0" + zeros + "200 0" + zeros + "3000 0" + zeros, 0x3210},
		{"11 0" + zeros + "201 0" + zeros + "3001 0" + zeros, 0x3213},
		{"12 0" + zeros + "3002 0" + zeros, 0x3213}, // one went offline: continue from these values
		{"14 0" + zeros + "3003 0" + zeros, 0x3216},
		{"15 0" + zeros + "202 0" + zeros + "3004 0" + zeros, 0x3216},
		{"16 0" + zeros + "203 0" + zeros + "3005 0" + zeros, 0x3219},
	} {
		if err := s.parse([]byte(x.file)); err != nil || s.processed != x.want {
			t.Errorf("step %d: %#x (%v), want %#x", i, s.processed, err, x.want)
		}
	}
}

func TestNetdevMalformed(t *testing.T) {
	const head = "Inter-|   Receive |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed\n"
	for _, x := range []struct{ file, want string }{
		{"", "net/dev line 1: the two lines of names are missing"},
		{"Inter-|\n", "net/dev line 2: the second line of names is missing"},
		{"Inter-|\n face |bytes\n", `net/dev line 2: " face |bytes" does not name the columns`},
		{"Inter-|\n face |bytes packets errs drop|bytes packets errs\n", "net/dev line 2: it does not name tx.drop"},
		{"Inter-|\n face |bytes bytes|\n", "net/dev line 2: it names rx.bytes twice"},
		{head + "eth0 1 2 3\n", `net/dev line 3: "eth0 1 2 3" does not begin with the name of an interface`},
		{head + "eth0: 1 2 3\n", "net/dev line 3: 3 values under 16 names"},
		{head + "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n", "net/dev line 3: 17 values under 16 names"},
		{head + "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 x\n", `net/dev line 3: "x" is not a number`},
		{head + "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 -1\n", `net/dev line 3: "-1" is not a number`},
		{head + "abcdefghijklmnop: 1\n", `"abcdefghijklmnop" is not the name of an interface`},
		{head + "  : 1\n", `"" is not the name of an interface`},
		{head + "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", "the file ends within it"},
		{head, ""},
		{head + "    lo:18446744073709551615 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", ""},
	} {
		_, err := parsers["netdev"].parse([]byte(x.file))
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%q: %v, want %q", x.file, err, x.want)
		}
	}
}

// TestNetdevFields: each column goes to its metric, and lo is left out.
func TestNetdevFields(t *testing.T) {
	const head = "Inter-|   Receive |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"
	p, err := newNetdev(collect.Env{})
	if err != nil {
		t.Fatal(err)
	}
	var s interfaces
	if err := p.(*netdev).parse([]byte(head+"    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n"+
		"  eth0:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\nveth1: 100 200 300 400 0 0 0 0 900 1000 1100 1200 0 0 0 0\n"), &s); err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{"rxbytes": 101, "rxpackets": 202, "rxerrors": 303, "rxdropped": 404,
		"txbytes": 909, "txpackets": 1010, "txerrors": 1111, "txdropped": 1212}
	sum := s.sum()
	for i, m := range p.(*netdev).metrics {
		if w := want[strings.TrimPrefix(m.Name, "kubeskoop_netdev_")]; sum[i] != w {
			t.Errorf("%s = %d, want %d", m.Name, sum[i], w)
		}
	}
}

// TestNetdevMissed: an interface that is missing in one reading is not gone, and does not
// count twice when it reappears.
func TestNetdevMissed(t *testing.T) {
	const head = "Inter-|   Receive |  Transmit\n face |bytes packets errs drop|bytes packets errs drop\n"
	p, err := newNetdev(collect.Env{})
	if err != nil {
		t.Fatal(err)
	}
	var s interfaces
	for i, x := range []struct {
		file string
		want uint64
	}{
		{"a: 10 0 0 0 0 0 0 0\nb: 5 0 0 0 0 0 0 0\n", 15},
		{"b: 6 0 0 0 0 0 0 0\n", 16},
		{"a: 12 0 0 0 0 0 0 0\nb: 6 0 0 0 0 0 0 0\n", 18},
		{"b: 6 0 0 0 0 0 0 0\n", 18},
		{"b: 6 0 0 0 0 0 0 0\n", 18},
		{"a: 12 0 0 0 0 0 0 0\nb: 6 0 0 0 0 0 0 0\n", 30},
		{"a: 1 0 0 0 0 0 0 0\nb: 6 0 0 0 0 0 0 0\n", 31},
		{"b: 6 0 0 0 0 0 0 0\nc: 1 0 0 0 0 0 0 0\na: 2 0 0 0 0 0 0 0\n", 33},
		{"", 33},
	} {
		if err := p.(*netdev).parse([]byte(head+x.file), &s); err != nil {
			t.Fatal(err)
		}
		if got := s.sum()[0]; got != x.want {
			t.Errorf("step %d: %d, want %d", i, got, x.want)
		}
	}
}

// TestIPVS: values are hexadecimal, and packets and bytes are not confused. The numbers are
// those that ipvsadm showed; see testdata/README.
func TestIPVS(t *testing.T) {
	for kernel, want := range map[string][ipvsColumns]uint64{
		"5.10":      {7, 43, 36, 2306, 21976},
		"6.1":       {7, 52, 39, 2774, 19276},
		"6.12":      {7, 47, 37, 2514, 18220},
		"4.18-made": {0x1A2B3C4D5, 0xFEDCBA987, 0x76543210F, 0x1234567890ABCDEF, 0xFEDCBA0987654321},
	} {
		got, err := parseIPVS(captured(t, "net/ip_vs_stats")[kernel])
		if err != nil || got != want {
			t.Errorf("%s: %v (%v), want %v", kernel, got, err, want)
		}
	}
	const head = "   Total Incoming Outgoing         Incoming         Outgoing\n   Conns  Packets  Packets            Bytes            Bytes\n"
	for _, x := range []struct{ file, want string }{
		{"", "net/ip_vs_stats line 1: a line of names is missing"},
		{"Total\n", `net/ip_vs_stats line 1: "Total" is not the names`},
		{strings.Replace(head, "Bytes", "Octets", 1), `line 2: "   Conns  Packets  Packets            Octets            Bytes" is not the names`},
		{head, "net/ip_vs_stats line 3: the totals are missing"},
		{head + "1 2 3 4\n", `net/ip_vs_stats line 3: "1 2 3 4" is not 5 hexadecimal numbers`},
		{head + "1 2 3 4 5 6\n", "is not 5 hexadecimal numbers"},
		{head + "1 2 3 4 G\n", "is not 5 hexadecimal numbers"},
		{head + "1 2 3 4 5", "the file ends within it"},
	} {
		if _, err := parseIPVS([]byte(x.file)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%q: %v, want %q", x.file, err, x.want)
		}
	}
}

func TestTCPText(t *testing.T) {
	var s netlink.TCPTable
	if err := parseTCP(&s, "net/tcp", 8, captured(t, "net/tcp")["6.18"]); err != nil {
		t.Fatal(err)
	}
	if s.States != [13]uint64{1: 10, 5: 2, 6: 2, 8: 2, 10: 1} || s.RxQueue != 5000 || s.TxQueue != 0 {
		t.Errorf("%+v", s)
	}
	const head = "  sl  local_address rem_address   st tx_queue rx_queue\n"
	const line = "   0: 0100007F:1F90 00000000:0000 0A 00000001:00000002"
	for _, x := range []struct{ file, want string }{
		{"", "net/tcp line 1: the line of names is missing"},
		{"x\n", `net/tcp line 1: "x" does not name the columns`},
		{head + "0:\n", `net/tcp line 2: "0:" is too short`},
		{head + "no number\n", "is too short"},
		{head + strings.Replace(line, " 0A ", "  0A", 1) + "\n", "does not have its columns where they belong"},
		{head + line + "1 x\n", "does not have its columns where they belong"},
		{head + strings.Replace(line, "0A", "0G", 1) + "\n", `the state "0G"`},
		{head + strings.Replace(line, "0A", "0D", 1) + "\n", "a TCP socket in the state 13"},
		{head + strings.Replace(line, "0A", "00", 1) + "\n", "a TCP socket in the state 0"},
		{head + strings.Replace(line, "00000002", "0000000x", 1) + "\n", "are not hexadecimal numbers"},
		{head + line, "the file ends within it"},
		{head, ""},
		{head + strings.Replace(line, "   0:", "123456:", 1) + "\n", ""},
	} {
		var s netlink.TCPTable
		err := parseTCP(&s, "net/tcp", 8, []byte(x.file))
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%q: %v, want %q", x.file, err, x.want)
		}
		if s.RxQueue != 0 || s.TxQueue != 0 {
			t.Errorf("%q: the queue of a listening socket counts", x.file)
		}
	}
}

func TestProcessIO(t *testing.T) {
	c, err := parseIO([]byte("rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n"))
	if err != nil || c != (ioCounts{3, 4, 5, 6}) {
		t.Errorf("%v, %v", c, err)
	}
	for _, x := range []struct{ file, want string }{
		{"", "io line 1: syscr is missing"},
		{"syscr 3\n", `io line 1: "syscr 3" has no colon`},
		{"syscr: x\n", `io line 1: the value " x" of syscr is not a number`},
		{"syscr: 3\nsyscw: 4\nread_bytes: 5\n", "io line 4: write_bytes is missing"},
		{"syscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6", "io line 4: the file ends within it"},
	} {
		if _, err := parseIO([]byte(x.file)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%q: %v, want %q", x.file, err, x.want)
		}
	}
}

// fuzz runs a parser on fuzzed input: it must not panic, and must give the same result
// twice.
func fuzz(f *testing.F, name string) {
	x := parsers[name]
	for _, b := range captured(f, x.file) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		one, err := x.parse(b)
		if err != nil {
			return
		}
		if two, err := x.parse(b); err != nil || two != one {
			t.Errorf("%s, then %s (%v)", one, two, err)
		}
	})
}

func FuzzSNMP(f *testing.F)        { fuzz(f, "udp") }
func FuzzNetstat(f *testing.F)     { fuzz(f, "tcpext") }
func FuzzSockstat(f *testing.F)    { fuzz(f, "sockstat") }
func FuzzSoftnet(f *testing.F)     { fuzz(f, "softnet") }
func FuzzNetdev(f *testing.F)      { fuzz(f, "netdev") }
func FuzzIPVS(f *testing.F)        { fuzz(f, "ipvs") }
func FuzzTCP(f *testing.F)         { fuzz(f, "tcp text") }
func FuzzTCP6(f *testing.F)        { fuzz(f, "tcp6 text") }
func FuzzProcessStat(f *testing.F) { fuzz(f, "pid stat") }
func FuzzProcessIO(f *testing.F)   { fuzz(f, "pid io") }
