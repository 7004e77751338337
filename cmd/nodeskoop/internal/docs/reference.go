package docs

import (
	"fmt"
	"io"
	"math"
	"slices"
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

Every series carries ` + "`k8s_node`, `k8s_namespace` and `k8s_pod`" + `. For the host's own network namespace, and for node-wide values, both pod labels are ` + "`" + owner.DefaultHostLabel + "`" + ` (or ` + "`pods.host_label`" + `).

How to read the tables:

- **per network namespace**: one series for each pod and one for the host, with what the network stack of that namespace counts. Pods that share the host's network are part of the host's series.
- **per pod**: the sum over all processes of the pod; the host's series is the sum over all processes outside pods. A process belongs to a pod if its control group, or a group above that, is one that containerd requested. If the processes of a pod cannot be listed or read, the pod's value is missing and ` + "`nodeskoop_probe_up`" + ` is 0. The host's value is missing as well if those processes could be mistaken for the host's. Processes that the kernel hides from everyone are left out of the sum and counted in ` + "`nodeskoop_probe_protected_processes`" + `.
- ` + "`io`" + ` of a pod includes processes that ran only between two samples: exec probes, ` + "`kubectl exec`" + `, hooks, containers that crash. containerd's shim reaps them and inherits their counts, so what the shim's counts grow beyond its own calls is the pod's. That includes runc's own work for an exec (about 20 writes each). The shim's own calls are the host's. If one shim serves several pods, the counts that it inherits are the host's, too.
- A container outside pods is labelled with its containerd namespace and its name (Docker's or nerdctl's, else its ID). If a pod or another container has that name, the label is ` + "`containerd:ID`" + ` until the container is deleted, so different pods and containers never share a series. A pod that replaces another one of the same name continues its series, with a counter reset. Two sandboxes of one pod (one UID) are the same pod.
- **per node**: one series. **per connection**: one series for each flow.
- A counter starts at whatever the kernel has counted so far; use ` + "`rate()`" + `. A running probe writes all of its series from the first sample on, zeros included. A probe of ` + "`probes.escalate`" + ` writes them from its first run on; they stand still while it does not run. Only ` + "`kubeskoop_packetloss_reason`" + ` and flows appear when they occur.
- A counter of the host, or of a pod that continues, never falls: not when an interface is deleted or a process ends, not when the daemon is restarted or killed, and not between two samples of ` + "`nodeskoop collect`" + `. The state for the next start is in ` + "`/var/lib/nodeskoop/counters`" + ` (see ` + "`[state]`" + ` in nodeskoop.toml(5)), which is replaced in each cycle before the textfile. Three kinds of counters start at 0 with each start, which ` + "`rate()`" + ` takes for the reset that it is: flows; the counters about nodeskoop itself (` + "`nodeskoop_*`" + `, except ` + "`nodeskoop_tcpreset_total`" + `, ` + "`nodeskoop_packetloss_ignored_total`" + ` and the histograms); and all counters after a reboot, or if the state could not be written or read, which the log reports. What BPF programs would have counted while no daemon ran is missing.
- A *histogram* is a classic Prometheus histogram, counted in the kernel: ` + bounds() + `. A value equal to a bound counts as above it, as with the thresholds of the slow counters. So if a counter's threshold is a bound, the counter equals the number of values above that bound. Each histogram is ` + fmt.Sprint(histogramSeries()) + ` series. ` + "`histogram_quantile(0.99, sum by (le, ...) (rate(NAME_bucket[5m])))`" + ` estimates the 99th percentile, with the resolution of the buckets. The history on the node keeps the buckets.
- ` + "`netdev`" + ` and ` + "`qdisc`" + ` sum what interfaces and root qdiscs have counted while they were in the namespace. Counts that an interface brings from another namespace are left out. In the host's namespace the kernel reports each interface and qdisc that appears or disappears, with its counters at that moment. In a pod's namespace an interface counts in full if its index is higher than any before. That includes an interface that moved in with such an index, unless it came from the host. One case loses counts: if a root qdisc in a pod is deleted and created again with the same handle within one interval, and the new one has then counted more than the old one, the old one's counts since the last sample are missing.
- A *segment* is what TCP puts on the wire. A *GSO packet* is several segments (or datagrams) that the kernel handles as one packet until the device, or the kernel just before it, segments it. A *GRO packet* is several that the kernel merged on arrival. A metric of packets counts either as one, unless it says otherwise; ` + "`tcp_outsegs`, `tcp_retranssegs`, `tcpretrans_total`, `tcpext_tcpretransfail` and `flow_packets`" + ` count segments.
- "IPv4" means that the kernel counts IPv6 elsewhere (snmp6), which nodeskoop does not read. If neither version is named, both count.
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
			fmt.Fprintf(&b, "\nWith `compat_names`, also under the names that existing dashboards use: %s.\n", strings.Join(same, ", "))
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

// bounds says which buckets the histograms have.
func bounds() string {
	var all []string
	for _, m := range catalog.Metrics() {
		if m.Type != catalog.Histogram {
			continue
		}
		var texts []string
		for _, b := range m.Bounds {
			texts = append(texts, strings.Replace(time.Duration(math.Round(b*1e9)).String(), "µ", "u", 1))
		}
		// The options of the first probe represent all; a test checks that they are
		// equal.
		all = append(all, fmt.Sprintf("the upper bounds of its %d buckets are %s and +Inf, in %s", len(texts)+1, strings.Join(texts, ", "), m.Unit))
	}
	return slices.Compact(all)[0]
}

func histogramSeries() int {
	return catalog.MustMetric("nodeskoop_biolatency_seconds").Series()
}

// scopeWords says what one series of a metric stands for.
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
	catalog.FieldTuple: "`KUBESKOOP_PROTOCOL`, `KUBESKOOP_SADDR`, `_SPORT`, `_DADDR`, `_DPORT`, and the owners of the two ends: " +
		"`KUBESKOOP_SRC_TYPE`, `_SRC_NAMESPACE`, `_SRC_POD`, `_SRC_NODE`, `KUBESKOOP_DST_TYPE`, `_DST_NAMESPACE`, `_DST_POD`, `_DST_NODE`; those of an unknown end, such as the peer of a UDP socket that is not connected, are missing",
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

Events go to the journal with structured fields:

` + "```" + `
journalctl -t nodeskoop -f                                # as they come
journalctl -t nodeskoop -x -n 5                           # with what each means
journalctl KUBESKOOP_EVENT=PacketLoss K8S_POD=web-0       # of one kind and pod
journalctl KUBESKOOP_EVENT=PacketLoss -o json --output-fields=KUBESKOOP_REASON,KUBESKOOP_LOCATION,K8S_POD
` + "```" + `

Fields of every event: ` + "`MESSAGE`, `MESSAGE_ID`, `PRIORITY`, `SYSLOG_IDENTIFIER=nodeskoop`, `KUBESKOOP_EVENT`, `KUBESKOOP_PROBE`, `K8S_NODE`, `K8S_NAMESPACE`, `K8S_POD`, `KUBESKOOP_NETNS`" + ` (the inode of the network namespace) and ` + "`KUBESKOOP_TIMESTAMP_US`" + ` (when the kernel saw it). A field without a value is left out. One occurrence sends one event: never both a SLOW event and its 100MS counterpart.

Events of one kind are merged. A kind is the event type, the pod, the reason and location, the TCP state, the vector, the device or disk, the process (all kworker threads are one), the protocol and the peer: the remote address, with its port if that is a service's (below 32768). The first event of a kind is written at once. Later events of the kind become one entry at the end of a window. The window is 10 s, and doubles up to 10 min while events continue. After a window without events, the next event is again written at once, and starts a window of twice the length. After a further minute without events (or a further window, if that is longer) the kind starts over. A merged entry has the fields of its worst occurrence (the longest latency, else the first), and:

| field | holds |
|---|---|
| ` + "`KUBESKOOP_COUNT`" + ` | number of occurrences in the entry; without this field it is one |
| ` + "`KUBESKOOP_FIRST_US`, `KUBESKOOP_LAST_US`" + ` | times of the first and the last of them in the kernel |
| ` + "`KUBESKOOP_PEERS`" + ` | number of their peers, if more than one; at most 128 |
| ` + "`KUBESKOOP_SUPPRESSED`" + ` | in any entry: number of events of its type and pod that a rate limit suppressed since their last entry |

An address or a port that differs between the occurrences is left out, and shown as * in ` + "`MESSAGE`" + `. From the ninth peer of one pod and reason on, peers share an entry. Limits apply to entries: ` + "`journal.rate`, `burst` and `total_rate`" + `. Always, and for each type, ` + "`nodeskoop_events_seen_total`" + ` is the sum of ` + "`nodeskoop_events_written_total`" + ` (the sum of ` + "`KUBESKOOP_COUNT`" + `), ` + "`ignored_total`, `suppressed_total`, `lost_total` and `pending`" + `.

An entry of one occurrence has priority 5, notice. An entry of at least as many occurrences as the table says has priority 4, warning: ` + "`journalctl -t nodeskoop -p warning`" + ` shows lasting and frequent problems.

Addresses of services: an event of a socket (` + "`TCPRESET_ACTIVE`, `TCPRESET_RECEIVE`, `TCPRetrans`, `SOCKETLAT_READSLOW`, `SOCKETLAT_SENDSLOW`, `TXLAT_NETDEV_100MS`" + `) shows the addresses of that socket. At the client of a service that is the service's address; at the backend it is the backend's own. An event of a packet shows the addresses in the packet's header at that point. For a pod whose node translates addresses (kube-proxy), every event of the client shows the service, and every event of the backend the backend; the node's own namespace shows one before the translation and the other after it. A client in the host's network is translated in its own namespace: ` + "`PacketLoss`, `TXKERNEL_SLOW` and `TXLAT_QDISC_100MS`" + ` of sent packets, and ` + "`PacketLoss`" + ` of a reply in a firewall's input rules, show the backend; events of packets that TCP has received (` + "`TCPRESET_NOSOCK`, `TCPRESET_PROCESS`, `RXKERNEL_SLOW`" + `) show the service.

The commands below contain words in capitals that you replace: ` + placeholders() + `. journalctl -x does not replace them: any process may write any field to the journal, and a command must not use such text.

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

// Causes writes the reference of the causes that diagnose names, docs/CAUSES.md.
func Causes(w io.Writer) error {
	var b strings.Builder
	b.WriteString(generatedMark + `# Causes

` + "`nodeskoop diagnose`" + ` takes two samples of the node and its pods, with the events between them, and names the causes that hold. A cause holds if all of its signs hold, if at least one of its alternative signs holds, and if no sign against it does. Consequences of a cause are not named for the same ends. So one fault is one finding, at the end that is to blame: a pod, the node, an address, or the path between two ends.

The thresholds distinguish a fault from what a healthy node shows, too. If the evidence is not clear, nothing is named: a wrong name sends somebody to the wrong machine.

In a source or command, ` + "`PID`" + ` is a process of the pod that shows the sign, or 1 for the node, ` + "`PEERPID`" + ` one of the other end, ` + "`PEER`" + ` the other end and ` + "`DEVICE`" + ` an interface; ` + "`nodeskoop diagnose`" + ` fills them in.

| cause | to blame | what happens |
|---|---|---|
`)
	for _, c := range catalog.Causes() {
		fmt.Fprintf(&b, "| [%s](#%s) | %s | %s |\n", c.ID, c.ID, c.Blame, cell(c.Means))
	}
	for _, c := range catalog.Causes() {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\nTo blame: %s.\n", c.ID, c.Means, c.Blame)
		switch c.Whose {
		case catalog.OfPods:
			b.WriteString("Looked for in: pods.\n")
		case catalog.OfTheNode:
			b.WriteString("Looked for in: the node.\n")
		}
		for _, group := range []struct {
			title string
			signs []catalog.Sign
		}{{"All of", c.All}, {"One of", c.One}, {"None of", c.Not}, {"Further evidence", c.More}} {
			if len(group.signs) == 0 {
				continue
			}
			b.WriteString("\n" + group.title + ":\n\n")
			for i := range group.signs {
				b.WriteString("- " + signText(&group.signs[i]) + "\n")
			}
		}
		fmt.Fprintf(&b, "\nSimilar, but harmless: %s\n", c.Healthy)
		if len(c.Explains) > 0 {
			way := "Not named beside it for the same ends"
			switch {
			case c.NodeWide:
				way += ", and named after it for others"
			case c.Passing:
				way += "; at the node, for all pods"
			}
			b.WriteString("\n" + way + ": " + strings.Join(c.Explains, ", ") + ".\n")
		}
		b.WriteString("\nNext:\n\n")
		for _, s := range c.Next {
			fmt.Fprintf(&b, "- `%s`: %s\n", s.Command, s.Shows)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// signText describes a sign: the observation, the threshold and the source.
func signText(s *catalog.Sign) string {
	signal := catalog.SignalByName(s.Signal)
	text := strings.NewReplacer("{n}", "N", "{peer}", "the other end", "{from}", "one end", "{what}", "...", "{time}", "the observed time").Replace(signal.Text)
	text += fmt.Sprintf(", N at least %v", s.AtLeast)
	if s.Many != 0 {
		text += fmt.Sprintf(", or %v with several other ends together", s.Many)
	}
	if s.Of != "" {
		text += fmt.Sprintf(" and %v %% of `%s`", s.Share*100, s.Of)
	}
	if s.OfNode {
		text += ", on the node"
	}
	text += " (`" + signal.Source + "`)."
	if s.Why != "" {
		text += " " + s.Why
	}
	return text
}

// warnFrom describes from how many occurrences on an entry is a warning.
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
