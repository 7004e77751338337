package top

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/collect/event"
	"nodeskoop/internal/quote"
)

// pageLines returns the head and the visible lines of the open page.
func (v *View) pageLines(width, room int) []line {
	name := v.page.namespace + "/" + v.page.pod
	if *v.page == hostName {
		name = "host"
	}
	name = quote.Safe(name)
	if v.shown == nil {
		return []line{styled(styleBold, column.Middle(name, width)), plain("reading the details ...")}
	}
	all := v.shown.lines()
	v.visible = room
	v.pageScroll = max(0, min(v.pageScroll, len(all)-room))
	widest := 0
	for _, l := range all {
		n := 0
		for _, s := range l {
			n += column.Width(s.text)
		}
		widest = max(widest, n)
	}
	v.pageSkip = min(v.pageSkip, max(0, (widest-width+pageStep-1)/pageStep*pageStep))
	at := v.shown.at.Format("15:04:05")
	if v.paused {
		at += "  PAUSED"
	}
	above, below := v.pageScroll, len(all)-room-v.pageScroll
	const marks = 10 // room for the numbers of hidden lines
	title := column.Middle(name, max(1, width-column.Width(at)-2-marks)) + "  " + at
	lines := []line{scrolled(title, width, above, below)}
	for _, l := range all[v.pageScroll:min(len(all), v.pageScroll+room)] {
		lines = append(lines, l.from(v.pageSkip))
	}
	return lines
}

// from removes the first columns of a line.
func (l line) from(columns int) line {
	var out line
	for _, s := range l {
		n := column.Width(s.text)
		out = out.add(s.style, column.From(s.text, columns))
		columns = max(0, columns-n)
	}
	return out
}

// writer builds the lines of a page: heads, with lines or a table below.
type writer struct{ lines []line }

func (w *writer) section(title, about string) {
	if len(w.lines) > 0 {
		w.lines = append(w.lines, nil)
	}
	l := styled(styleBold, title)
	if about != "" {
		l = l.add(styleDim, "  "+quote.SafeLine(about))
	}
	w.lines = append(w.lines, l)
}

func (w *writer) note(text string) {
	w.lines = append(w.lines, styled(styleDim, "  "+quote.SafeLine(text)))
}
func (w *writer) trouble(text string) {
	w.lines = append(w.lines, styled(styleWarn, "  "+quote.SafeLine(text)))
}

// table writes rows below heads. The first `numbers` columns are right-aligned.
func (w *writer) table(numbers int, rows ...[]string) {
	for _, r := range rows {
		for i := range r {
			r[i] = quote.SafeLine(r[i])
		}
	}
	widths := column.Widths(rows)
	for i, r := range rows {
		var parts []string
		for j, text := range r {
			parts = append(parts, column.Pad(text, widths[j], j >= numbers))
		}
		l := plain("  " + strings.TrimRight(strings.Join(parts, "  "), " "))
		if i == 0 {
			l[0].style = styleDim
		}
		w.lines = append(w.lines, l)
	}
}

// lines returns the lines of a page, with an explanation for each missing part.
func (p *page) lines() []line {
	var w writer
	p.writeWho(&w)
	p.writeDrops(&w)
	p.writeCauses(&w)
	p.writeQueues(&w)
	p.writePeers(&w)
	p.writeEvents(&w)
	p.writeProcesses(&w)
	return w.lines
}

func (p *page) writeWho(w *writer) {
	switch {
	case p.name == hostName:
		w.note("the host's network namespace")
		return
	case p.pod == nil:
		w.trouble("the pod has ended")
		return
	}
	var addrs []string
	for _, a := range p.pod.Addrs {
		addrs = append(addrs, a.String())
	}
	if len(addrs) == 0 {
		addrs = []string{"no address is known"}
	}
	text := fmt.Sprintf("%s  netns %d", strings.Join(addrs, ", "), p.pod.Netns)
	if !p.pod.Started.IsZero() {
		text += "  since " + p.pod.Started.Format(time.DateTime)
	}
	w.note(text)
}

// cell returns the text of a column in the page's row, "-" if there is none.
func (p *page) cell(name string) string {
	if p.row != nil {
		for i := range p.row.cells {
			if i < len(p.columns) && p.columns[i].Name == name {
				return p.row.cells[i].text(&p.columns[i])
			}
		}
	}
	return "-"
}

func (p *page) writeDrops(w *writer) {
	w.section("DROPS", "packets lost in this network namespace")
	switch {
	case p.lossErr != nil:
		w.trouble("not known: " + p.lossErr.Error())
	case p.row == nil:
		w.note("not known: no counters of it were sampled yet")
	case len(p.reasons) == 0:
		w.note("none since " + p.begun.Format(time.TimeOnly))
	default:
		rows := [][]string{{"/s", "SINCE " + p.begun.Format(time.TimeOnly), "REASON"}}
		for _, r := range p.reasons {
			second := "-"
			if r.second >= 0 {
				second = short(r.second)
			}
			rows = append(rows, []string{second, strconv.FormatFloat(r.total, 'f', 0, 64), r.name})
		}
		w.table(2, rows...)
	}
	if p.name != hostName && p.lossErr == nil {
		w.note(fmt.Sprintf("lost on the host, by its rules, queues or routes: %s/s, %s since %s", p.cell(hostDrops), p.hostDrops, p.begun.Format(time.TimeOnly)))
	}
}

func (p *page) writeCauses(w *writer) {
	w.section("WHO AND WHERE", "the drops of which an event told, by reason, function and peer")
	rows := [][]string{{"COUNT", "LAST", "REASON", "PEER", "FUNCTION"}}
	for _, k := range p.kinds {
		if k.typ != packetLoss || len(rows) > pageCauses {
			continue
		}
		where := k.function
		if k.host {
			where += " (on the host)"
		}
		rows = append(rows, []string{strconv.FormatUint(k.count, 10), k.last.Format(time.TimeOnly), column.Dash(k.reason), column.Dash(k.peer), column.Dash(where)})
	}
	switch {
	case len(rows) > 1:
		w.table(1, rows...)
	case p.lossErr != nil:
		w.trouble("not known: " + p.lossErr.Error())
	default:
		w.note("none since " + p.begun.Format(time.TimeOnly))
	}
}

func (p *page) writeQueues(w *writer) {
	w.section("QUEUES", "of TCP sockets")
	if rx, tx := p.cell("rx_queue"), p.cell("tx_queue"); rx == "-" && tx == "-" {
		w.note("bytes are not known: the probe tcpsummary gave none")
	} else {
		w.note(fmt.Sprintf("%s B received and not read, %s B sent and not acknowledged", rx, tx))
	}
	if p.socketErr != nil {
		w.trouble("accept queues are not known: " + p.socketErr.Error())
		return
	}
	if len(p.sockets.listeners) == 0 {
		w.note("no socket listens")
		return
	}
	rows := [][]string{{"WAIT", "BACKLOG", "LISTENS ON"}}
	for _, l := range p.sockets.listeners {
		rows = append(rows, []string{strconv.FormatUint(uint64(l.waiting), 10), strconv.FormatUint(uint64(l.backlog), 10), l.addr.String()})
	}
	w.table(2, rows...)
	if n := p.sockets.otherListeners; n > 0 {
		w.note(fmt.Sprintf("and %d more, with the same number of waiting connections or fewer", n))
	}
}

func (p *page) writePeers(w *writer) {
	w.section("PEERS", "of TCP connections, the fullest queues first")
	switch {
	case p.socketErr != nil:
		w.trouble("not known: " + p.socketErr.Error())
		return
	case len(p.sockets.peers) == 0:
		w.note("no connection")
		return
	}
	rows := [][]string{{"CONNS", "RX-Q", "TX-Q", "PEER"}}
	for _, x := range p.sockets.peers {
		who := x.pod
		if who == "" {
			who = x.addr.String()
			if x.addr.Is6() {
				who = "[" + who + "]"
			}
		}
		if x.inbound {
			who = "from " + who + " to :" + strconv.Itoa(int(x.port))
		} else {
			who = "to " + who + ":" + strconv.Itoa(int(x.port))
		}
		rows = append(rows, []string{strconv.Itoa(x.connections), short(float64(x.rx)), short(float64(x.tx)), who})
	}
	w.table(3, rows...)
	if n := p.sockets.otherPeers; n > 0 {
		w.note(fmt.Sprintf("and %d more", n))
	}
	if n := p.sockets.unseen; n > 0 {
		w.note(fmt.Sprintf("%d further sockets were not read", n))
	}
}

func (p *page) writeEvents(w *writer) {
	w.section("EVENTS", fmt.Sprintf("the last %d kinds", pageEvents))
	rows := [][]string{{"COUNT", "LAST", "EVENT", "PEER", "DETAIL"}}
	for _, k := range p.kinds {
		if len(rows) > pageEvents {
			break
		}
		var details []string
		add := func(before, s string) {
			if s != "" {
				details = append(details, before+s)
			}
		}
		add("", k.reason)
		add("in ", k.function)
		if k.host {
			add("", "on the host")
		}
		add("process ", k.comm)
		if k.worst > 0 {
			add("up to ", string(event.AppendLatency(nil, k.worst)))
		}
		rows = append(rows, []string{strconv.FormatUint(k.count, 10), k.last.Format(time.TimeOnly), k.typ.Name, column.Dash(k.peer), column.Dash(strings.Join(details, ", "))})
	}
	if len(rows) == 1 {
		w.note("none since " + p.begun.Format(time.TimeOnly))
		return
	}
	w.table(1, rows...)
	if p.more {
		w.note(fmt.Sprintf("kinds beyond the last %d are forgotten, and count from 1 when they occur again", keptKinds))
	}
}

func (p *page) writeProcesses(w *writer) {
	w.section("PROCESSES", "")
	if p.processErr != nil {
		w.trouble("not all are known: " + p.processErr.Error())
	}
	if len(p.processes) == 0 {
		if p.processErr == nil {
			w.note("none")
		}
		return
	}
	rows := [][]string{{"PID", "NAME"}}
	for _, x := range p.processes {
		rows = append(rows, []string{strconv.Itoa(x.pid), x.name})
	}
	w.table(1, rows...)
	if p.unlisted > 0 {
		w.note(fmt.Sprintf("and %d more", p.unlisted))
	}
}
