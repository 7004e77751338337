package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
)

// proof is a number that shows independently of nodeskoop that a fault exists.
type proof struct {
	what string
	read func() (float64, error)
	// least is the minimum increase of the number while diagnose runs; with level,
	// its minimum before and after.
	least float64
	level bool
}

// begun waits until the fault exists, and returns the current number.
func (p proof) begun(t testing.TB) float64 {
	t.Helper()
	first, err := p.read()
	now := first
	there := func() bool {
		if now, err = p.read(); err != nil {
			return false
		}
		if p.level {
			return now >= p.least
		}
		return now > first
	}
	if !testkit.Within(testkit.Patience, there) {
		t.Fatalf("the fault does not begin: %s is %v (%v), want more", p.what, now, err)
	}
	return now
}

// held fails the test unless the fault has existed since before was read. It
// returns the proof as text.
func (p proof) held(t testing.TB, before float64, took time.Duration) string {
	t.Helper()
	now, err := p.read()
	if p.level {
		// One look may fall between two requests.
		testkit.Within(2*time.Second, func() bool {
			if now < p.least {
				now, err = p.read()
			}
			return now >= p.least
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	value := now
	text := fmt.Sprintf("%s was %.4g", p.what, now)
	if !p.level {
		value = now - before
		text = fmt.Sprintf("%s rose by %.0f in %.0f s", p.what, value, took.Seconds())
	}
	if value < p.least {
		t.Fatalf("the fault did not last: %s, want %v at least", text, p.least)
	}
	return text
}

// nstat is a counter of a namespace.
func nstat(where string, n netns, counter string, least float64) proof {
	return proof{what: counter + " of " + where + " (nstat)", least: least, read: func() (float64, error) {
		out, err := n.try("nstat -asz %s", counter)
		if err != nil {
			return 0, err
		}
		return number(out, regexp.QuoteMeta(counter)+`\s+(\d+)`)
	}}
}

// matched reads the counter of the nftables rule with a comment.
func matched(where string, n netns, comment string, least float64) proof {
	return proof{what: "packets of the rule " + comment + " of " + where + " (nft list ruleset)", least: least, read: func() (float64, error) {
		out, err := n.try("nft list ruleset")
		if err != nil {
			return 0, err
		}
		return number(out, `packets (\d+) bytes \d+ .*comment "`+comment+`"`)
	}}
}

// ruled reads the counter of the iptables rule with a comment.
func ruled(where string, n netns, table, comment string, least float64) proof {
	return proof{what: "packets of the rule " + comment + " of " + where + " (iptables -nvxL)", least: least, read: func() (float64, error) {
		out, err := n.try("iptables -w -t %s -nvxL", table)
		if err != nil {
			return 0, err
		}
		return number(out, `(?m)^\s*(\d+)\s.*/\* `+comment+` \*/`)
	}}
}

// queued reads a counter of an interface's queue: dropped or overlimits.
func queued(where string, n netns, dev, counter string, least float64) proof {
	return proof{what: counter + " of " + dev + " of " + where + " (tc -s qdisc)", least: least, read: func() (float64, error) {
		out, err := n.try("tc -s qdisc show dev %s", dev)
		if err != nil {
			return 0, err
		}
		return number(out, counter+` (\d+)`)
	}}
}

// sockets is how many sockets ss lists.
func sockets(where string, n netns, filter string, least float64) proof {
	return proof{what: "sockets of " + where + " (ss -Htan " + filter + ")", least: least, level: true, read: func() (float64, error) {
		out, err := n.try("ss -Htan %s", filter)
		return float64(strings.Count(out, "\n")), err
	}}
}

// tracking sums counters of conntrack's statistics over all CPUs.
func tracking(where string, n netns, least float64, counters ...string) proof {
	return proof{what: strings.Join(counters, " + ") + " of " + where + " (conntrack -S)", least: least, read: func() (float64, error) {
		out, err := n.try("conntrack -S")
		if err != nil {
			return 0, err
		}
		sum := 0.0
		for _, m := range regexp.MustCompile(`\b(`+strings.Join(counters, "|")+`)=(\d+)`).FindAllStringSubmatch(out, -1) {
			v, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				return 0, err
			}
			sum += v
		}
		return sum, nil
	}}
}

// inFile is a number in a file.
func inFile(what, path, pattern string, least float64) proof {
	return proof{what: what, least: least, read: func() (float64, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		return number(string(b), pattern)
	}}
}

// waited is the average time of a read of a block device since now, in
// milliseconds. A loop device keeps its counters from an earlier user.
func waited(t testing.TB, device string, least float64) proof {
	t.Helper()
	name := filepath.Base(device)
	stat := func() (reads, ms float64, err error) {
		b, err := os.ReadFile("/sys/block/" + name + "/stat")
		if err != nil {
			return 0, 0, err
		}
		_, err = fmt.Sscan(string(b), &reads, new(float64), new(float64), &ms)
		return reads, ms, err
	}
	reads0, ms0, err := stat()
	if err != nil {
		t.Fatal(err)
	}
	return proof{what: "milliseconds of a read of " + name + " (/sys/block/" + name + "/stat)", least: least, level: true, read: func() (float64, error) {
		reads, ms, err := stat()
		if err != nil || reads == reads0 {
			return 0, err
		}
		return (ms - ms0) / (reads - reads0), nil
	}}
}

// sumOfColumn sums a hexadecimal column of a file in /proc/net/stat over the CPUs.
func sumOfColumn(table, name string) (float64, error) {
	lines := strings.Split(strings.TrimSpace(table), "\n")
	at := slices.Index(strings.Fields(lines[0]), name)
	if at < 0 {
		return 0, fmt.Errorf("no column %s in %q", name, lines[0])
	}
	sum := 0.0
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if at >= len(f) {
			return 0, fmt.Errorf("no column %d in %q", at, line)
		}
		v, err := strconv.ParseUint(f[at], 16, 64)
		if err != nil {
			return 0, err
		}
		sum += float64(v)
	}
	return sum, nil
}

func number(text, pattern string) (float64, error) {
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("no %s in %.2000q", pattern, text)
	}
	return strconv.ParseFloat(m[1], 64)
}
