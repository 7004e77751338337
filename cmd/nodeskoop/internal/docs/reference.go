package docs

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

// generatedMark tells readers of the source that the page is generated.
const generatedMark = "<!-- Made from the catalogue by `make generate`. Do not edit. -->\n"

// Probes writes the table of probes in docs/reading.md.
func Probes(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| probe | looks at | from | on by default | events |\n|---|---|---|---|---|\n")
	for _, p := range catalog.Probes() {
		var events []string
		for i := range p.Events {
			events = append(events, "`"+p.Events[i].Name+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", p.Name, cell(p.Title), p.Source, column.YesNo(p.Default), strings.Join(events, " "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Metrics writes the reference of metrics, docs/METRICS.md.
func Metrics(w io.Writer) error {
	var b strings.Builder
	b.WriteString(generatedMark + `# Metrics

Every series carries ` + "`k8s_node`, `k8s_namespace` and `k8s_pod`" + `. For the host's own network namespace, and for what the kernel counts for the whole node, both pod labels are ` + "`" + owner.DefaultHostLabel + "`" + ` (or ` + "`pods.host_label`" + `).

How to read the tables:

- **per network namespace**: one series for each pod, and one for the host, of what that namespace's network stack counts. Pods that share the host's network are in the host's series.
- **per pod**: over all processes of the pod; the host's series is everything outside pods. A process is in a pod if its control group is one that containerd asked for, or below one. A sum that lacks a process is left out: where the processes of a pod cannot be listed or read, neither the pod nor, if they could be taken for its own, the host has a value, and ` + "`nodeskoop_probe_up`" + ` is 0. Processes that the kernel shows to nobody are left out of the sum and counted in ` + "`nodeskoop_probe_protected_processes`" + `.
- ` + "`io`" + ` of a pod has what ended between two samples, too: exec probes, ` + "`kubectl exec`" + `, hooks, containers that crash. containerd's shim reaps them; what its counts grow by beyond its own calls is the pod's, runc's own work for an exec included (about 20 writes each). The shim's own calls are the host's. With a shim that serves several pods, they are the host's as well.
- A container outside pods is labelled with its containerd namespace and its name (Docker's or nerdctl's, else its ID). If a pod or another container has that name, the label is ` + "`containerd:ID`" + ` until the container is deleted: no two that are not one pod share a series. A pod that replaces another of its name continues that one's series, and its counters are reset; two sandboxes of one pod (one UID) are that pod.
- **per node**, **per connection**: as it says.
- A counter begins at whatever the kernel had counted; use ` + "`rate()`" + `. A probe that runs emits all its series from the first sample on, zeros included, except ` + "`kubeskoop_packetloss_reason`" + ` and flows, which appear when they occur.
- A counter of the host, or of a pod that goes on, never falls: not when an interface is deleted or a process ends, not at a restart of the daemon, a kill included, and not between two samples of ` + "`nodeskoop collect`" + `. What the next start has to know is in ` + "`/var/lib/nodeskoop/counters`" + ` (see ` + "`[state]`" + ` in nodeskoop.toml(5)), which is replaced each cycle before the textfile. Three kinds begin at 0 with each start, as a whole, which ` + "`rate()`" + ` takes for the reset that it is: flows; the tool's own counters (` + "`nodeskoop_*`" + `, but for ` + "`nodeskoop_tcpreset_total`" + ` and ` + "`nodeskoop_packetloss_ignored_total`" + `); and everything after a reboot, or where the state could not be written or read, which the log says. What BPF programs would have counted while no daemon ran is missing.
- netdev and qdisc count what interfaces and root qdiscs have counted in that namespace. What an interface brings along that moves in does not count. In the host's namespace the kernel tells of what comes and goes, with its counters then; in a pod's, an interface counts from 0 if its index is higher than any before, and so does one that moves in with such an index, unless it comes from the host. Where a root qdisc in a pod is deleted and made anew with its handle within one interval, and has counted more than the one before by then, what the one before had counted since is missing.
- A *segment* is what TCP puts on the wire. A *GSO packet* is several segments (or datagrams) that the kernel handles as one packet until the device, or the kernel just before it, cuts it up; a *GRO packet* is several that were merged on arrival. A metric of packets counts either as one, unless it says otherwise; ` + "`tcp_outsegs`, `tcp_retranssegs`, `tcpretrans_total`, `tcpext_tcpretransfail` and `flow_packets`" + ` count segments.
- "IPv4" says that the kernel counts IPv6 elsewhere (snmp6), and nodeskoop does not read it. Where neither is named, both count.
- Functions are named as in Linux 6.x. A metric whose kernel counter does not exist on a machine has no series there.

`)
	for _, p := range catalog.Probes() {
		if len(p.Metrics) > 0 {
			fmt.Fprintf(&b, "[%s](#%s) ", p.Name, p.Name)
		}
	}
	b.WriteString("[nodeskoop itself](#nodeskoop-itself)\n")
	for _, p := range catalog.Probes() {
		if len(p.Metrics) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s. From %s; on by default: %s. %s\n", p.Name, upperFirst(p.Title), p.Source, column.YesNo(p.Default), p.Cost)
		b.WriteString("\n| metric | meaning | what moves it | in the kernel |\n|---|---|---|---|\n")
		var same []string
		for i := range p.Metrics {
			m := &p.Metrics[i]
			if m.Alias != "" {
				same = append(same, fmt.Sprintf("`%s` is `%s`", m.Name, m.Alias))
				continue
			}
			fmt.Fprintf(&b, "| `%s`<br>%s per %s | %s | %s | %s |\n", m.Name, m.Type, scopeWords(m), cell(m.Help), cell(m.Rises), cell(m.Kernel))
		}
		if len(same) > 0 {
			fmt.Fprintf(&b, "\nWith `compat_names`, under the names that dashboards in the wild use: %s.\n", strings.Join(same, ", "))
		}
	}
	b.WriteString("\n## nodeskoop itself\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, m := range catalog.Metrics() {
		if m.Probe() == "" {
			typ, meaning := m.Type.String(), m.Help
			if m.Scope != catalog.PerHost {
				typ += " per " + scopeWords(m)
			}
			if m.Rises != "" {
				meaning += " " + m.Rises
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, typ, strings.Join(m.Labels, ", "), cell(meaning))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// scopeWords describes what one series of a metric stands for.
func scopeWords(m *catalog.Metric) string {
	s := map[catalog.Scope]string{
		catalog.PerNetns: "network namespace", catalog.PerPod: "pod",
		catalog.PerHost: "node", catalog.PerFlow: "connection",
	}[m.Scope]
	if len(m.Labels) > 0 && m.Scope != catalog.PerFlow {
		s += " and " + strings.Join(m.Labels, ", ")
	}
	if m.Scope == catalog.PerFlow {
		s += "; labels " + strings.Join(m.Labels, ", ")
	}
	return s
}

// groupFields are the journal fields of each group.
var groupFields = map[catalog.FieldGroup]string{
	catalog.FieldTuple: "`KUBESKOOP_PROTOCOL`, `KUBESKOOP_SADDR`, `_SPORT`, `_DADDR`, `_DPORT`, and whose the two ends are: " +
		"`KUBESKOOP_SRC_TYPE`, `_SRC_NAMESPACE`, `_SRC_POD`, `_SRC_NODE`, `KUBESKOOP_DST_TYPE`, `_DST_NAMESPACE`, `_DST_POD`, `_DST_NODE`",
	catalog.FieldLatency:   "`KUBESKOOP_LATENCY_NS`",
	catalog.FieldOperation: "`KUBESKOOP_OPERATION`, `KUBESKOOP_BYTES`",
	catalog.FieldProcess:   "`KUBESKOOP_COMM`, `KUBESKOOP_PID`",
	catalog.FieldCPU:       "`KUBESKOOP_CPU`",
	catalog.FieldPID:       "`KUBESKOOP_PID`",
	catalog.FieldIfname:    "`KUBESKOOP_IFNAME`",
	catalog.FieldDisk:      "`KUBESKOOP_DISK`",
	catalog.FieldVector:    "`KUBESKOOP_VECTOR`",
	catalog.FieldLocation:  "`KUBESKOOP_LOCATION`",
	catalog.FieldReason:    "`KUBESKOOP_REASON`",
	catalog.FieldTCPState:  "`KUBESKOOP_TCP_STATE`",
	catalog.FieldStack:     "`KUBESKOOP_STACK`",
}

// Events writes the reference of events, docs/EVENTS.md.
func Events(w io.Writer) error {
	var b strings.Builder
	b.WriteString(generatedMark + `# Events

They go to the journal with structured fields:

` + "```" + `
journalctl -t nodeskoop -f                                # as they come
journalctl -t nodeskoop -x -n 5                           # with what each means
journalctl KUBESKOOP_EVENT=PacketLoss K8S_POD=web-0       # of one kind and pod
journalctl KUBESKOOP_EVENT=PacketLoss -o json --output-fields=KUBESKOOP_REASON,KUBESKOOP_LOCATION,K8S_POD
` + "```" + `

Fields of every event: ` + "`MESSAGE`, `MESSAGE_ID`, `PRIORITY`, `SYSLOG_IDENTIFIER=nodeskoop`, `KUBESKOOP_EVENT`, `KUBESKOOP_PROBE`, `K8S_NODE`, `K8S_NAMESPACE`, `K8S_POD`, `KUBESKOOP_NETNS`" + ` (the inode of the network namespace) and ` + "`KUBESKOOP_TIMESTAMP_US`" + ` (when the kernel saw it). A field without a value is left out. An occurrence is one event: a SLOW event and its 100MS twin are never both sent.

Events of one kind are merged. A kind is the event type, the pod, the reason and location, the TCP state, the vector, the device or disk, the process (all kworker threads are one), the protocol and the peer: the remote address, with its port where a service has it (below 32768). The first event of a kind is an entry at once. What comes after it is one entry at the end of a window: of 10 s, which doubles to 10 min while it goes on. After a window in which nothing came the next event is an entry at once again, and begins a window of twice the length; after a minute more without any, or another such window if that is longer, the kind starts over. The fields of such an entry are those of its worst occurrence (the longest latency, or else the first), and:

| field | holds |
|---|---|
| ` + "`KUBESKOOP_COUNT`" + ` | for how many occurrences the entry stands; an entry without it stands for one |
| ` + "`KUBESKOOP_FIRST_US`, `KUBESKOOP_LAST_US`" + ` | when the kernel saw the first and the last of them |
| ` + "`KUBESKOOP_PEERS`" + ` | how many peers they have, if more than one; it stops at 128 |
| ` + "`KUBESKOOP_SUPPRESSED`" + ` | in any entry: how many events of its type and pod a rate limit held back since their last entry |

An address or a port that not all occurrences have is left out, and is a * in ` + "`MESSAGE`" + `. The ninth peer of one pod and reason shares an entry with all that follow. Limits are on entries: ` + "`journal.rate`, `burst` and `total_rate`" + `. Always, and for each type, ` + "`nodeskoop_events_seen_total`" + ` is the sum of ` + "`nodeskoop_events_written_total`" + ` (the sum of ` + "`KUBESKOOP_COUNT`" + `), ` + "`ignored_total`, `suppressed_total`, `lost_total` and `pending`" + `.

An entry that stands for one occurrence has priority 5, notice. One that stands for as many as the table says, or more, has priority 4, warning: ` + "`journalctl -t nodeskoop -p warning`" + ` shows what lasts or is many.

Addresses of services: an event of a socket (` + "`TCPRESET_ACTIVE`, `TCPRESET_RECEIVE`, `TCPRetrans`, `SOCKETLAT_READSLOW`, `SOCKETLAT_SENDSLOW`, `TXLAT_NETDEV_100MS`" + `) shows the addresses of that socket. At the client of a service that is the service's address; at the backend it is the backend's own. An event of a packet shows the packet's header at that place. In a pod whose node translates (kube-proxy), every event of the client shows the service, and every event of the backend the backend; the node's own namespace shows either, before and after the translation. A client in the host's network has the translation in its own namespace: ` + "`PacketLoss`, `TXKERNEL_SLOW` and `TXLAT_QDISC_100MS`" + ` of what it sends, and ` + "`PacketLoss`" + ` of an answer in a firewall's input rules, show the backend; what TCP has received (` + "`TCPRESET_NOSOCK`, `TCPRESET_PROCESS`, `RXKERNEL_SLOW`" + `) shows the service.

Commands to look at next have words in capitals that you fill in: ` + placeholders() + `. journalctl -x does not fill them in: anyone may write to the journal, with any field, and a command must not take a name from there.

| event | probe | when | warning from | what happened |
|---|---|---|---|---|
`)
	for _, e := range catalog.Events() {
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s | %s | %s | %s |\n", e.Name, strings.ToLower(e.Name), e.Probe(), when(e), warnFrom(e), cell(e.Summary))
	}
	for _, e := range catalog.Events() {
		p := catalog.ProbeByName(e.Probe())
		fmt.Fprintf(&b, "\n## %s\n\n%s. %s\n", e.Name, e.Summary, e.Explain)
		if len(e.Next) > 0 {
			b.WriteString("\n| look next | it shows |\n|---|---|\n")
			for _, s := range e.Next {
				fmt.Fprintf(&b, "| `%s` | %s |\n", cell(s.Command), cell(s.Shows))
			}
		}
		b.WriteString("\n")
		fields := make([]string, len(e.Fields))
		for i, f := range e.Fields {
			fields[i] = groupFields[f]
			if f == catalog.FieldPoints {
				var points []string
				for _, at := range e.Points {
					points = append(points, "`KUBESKOOP_LATENCY_"+strings.ToUpper(at)+"_NS`")
				}
				fields[i] = strings.Join(points, ", ") + " (" + e.PointsKnown + ")"
			}
		}
		fmt.Fprintf(&b, "- Probe `%s`, on by default: %s. %s\n- In the kernel: %s; %s.\n- Priority: %s\n- Fields: %s.\n- `MESSAGE_ID=%s`\n",
			p.Name, column.YesNo(p.Default), p.Cost, e.Path, when(e), e.Grades(), strings.Join(fields, "; "), e.MessageID)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// warnFrom says from how many occurrences on an entry is a warning.
func warnFrom(e *catalog.EventType) string {
	if e.Warn.Count == 0 {
		return "-"
	}
	return strconv.FormatUint(e.Warn.Count, 10)
}

// placeholders describes the words in commands that the reader replaces.
func placeholders() string {
	var means []string
	for _, p := range catalog.Placeholders {
		means = append(means, "`"+p.Word+"` is "+p.Means)
	}
	return strings.Join(means, "; ")
}

// when describes which occurrences become events.
func when(e *catalog.EventType) string {
	switch {
	case e.Below != 0:
		return fmt.Sprintf("%v to %v", spell(e.Threshold), spell(e.Below))
	case e.Threshold != 0:
		return "over " + spell(e.Threshold)
	}
	return "each one"
}

func spell(d time.Duration) string { return strings.Replace(d.String(), "ms", " ms", 1) }

// cell escapes text for a Markdown table.
func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }
