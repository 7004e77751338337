package faults

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nodeskoop/internal/testkit"
)

// beside is a program that an engineer would use without nodeskoop: it counts, with
// bpftrace, dropped packets by the kernel's reason, and TCP's retransmissions and
// resets.
const beside = `BEGIN { printf("attached\n"); }
tracepoint:skb:kfree_skb { @["drop", args->reason] = count(); }
tracepoint:tcp:tcp_retransmit_skb { @["retransmitted", 0] = count(); }
tracepoint:tcp:tcp_send_reset { @["reset sent", 0] = count(); }`

// besides starts that program. The returned function stops it and returns its counts.
// It is nil if bpftrace is missing or does not run here.
func besides(t testing.TB) func() string {
	t.Helper()
	if _, err := exec.LookPath("bpftrace"); err != nil {
		return nil
	}
	var out, errs testkit.Log
	// The program first prints the numbers of the reasons.
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount -t tracefs tracefs /sys/kernel/tracing && grep -o '{ [0-9]*, "[A-Z_0-9]*" }' /sys/kernel/tracing/events/skb/kfree_skb/format; exec bpftrace -f json -e "$0"`, beside)
	cmd.Stdout, cmd.Stderr = &out, &errs
	p, err := testkit.TryStart(t, cmd)
	if err != nil {
		t.Logf("bpftrace: %v", err)
		return nil
	}
	if !p.Ready(t, func() bool { return strings.Contains(out.String(), "attached") }) {
		t.Logf("bpftrace does not run here: %s", &errs)
		return nil
	}
	return func() string {
		p.Stop()
		return counted(out.String())
	}
}

var reasonOf = regexp.MustCompile(`\{ (\d+), "([A-Z_0-9]+)" \}`)

// leastBeside is the least count that is shown, since a healthy node also drops and
// resets a few packets.
const leastBeside = 5

// counted formats bpftrace's counts, the largest first.
func counted(out string) string {
	names := map[string]string{}
	for _, m := range reasonOf.FindAllStringSubmatch(out, -1) {
		names["drop,"+m[1]] = m[2]
	}
	type line struct {
		name string
		n    int
	}
	var lines []line
	for text := range strings.Lines(out) {
		var m struct {
			Type string
			Data map[string]map[string]int
		}
		if json.Unmarshal([]byte(text), &m) != nil || m.Type != "map" {
			continue
		}
		for k, n := range m.Data["@"] {
			if n >= leastBeside {
				what, _, _ := strings.Cut(k, ",")
				lines = append(lines, line{cmp.Or(names[k], what), n})
			}
		}
	}
	slices.SortFunc(lines, func(a, b line) int { return cmp.Or(b.n-a.n, strings.Compare(a.name, b.name)) })
	var texts []string
	for _, l := range lines[:min(len(lines), 4)] {
		texts = append(texts, fmt.Sprintf("%s %d", l.name, l.n))
	}
	return cmp.Or(strings.Join(texts, ", "), "nothing")
}

func TestCounted(t *testing.T) {
	for _, c := range []struct{ out, want string }{
		{"", "nothing"},
		{`{ 2, "NOT_SPECIFIED" }` + "\n" + `{ 3, "NO_SOCKET" }` + "\n" + `{"type": "printf", "data": "attached\n"}` + "\n" +
			`{"type": "map", "data": {"@": {"drop,3": 107, "drop,2": 4, "drop,99": 8, "retransmitted,0": 20}}}` + "\n", "NO_SOCKET 107, retransmitted 20, drop 8"},
	} {
		if got := counted(c.out); got != c.want {
			t.Errorf("%q: %q, want %q", c.out, got, c.want)
		}
	}
}
