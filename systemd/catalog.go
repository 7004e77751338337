package systemd

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"nodeskoop/collect/catalog"
)

// catalogWidth is the longest line of a catalog entry: journalctl -x indents it by three
// columns.
const catalogWidth = 76

// WriteCatalog writes the journal's message catalog, which journalctl -x shows: an entry
// for each event type, under its MESSAGE_ID.
func WriteCatalog(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprint(b, "# The events of nodeskoop, for journalctl -x.\n# Made by `nodeskoop docs catalog`. Do not edit.\n")
	for _, e := range catalog.Events() {
		fmt.Fprintf(b, "\n-- %s\nSubject: %s\nDefined-By: nodeskoop\nDocumentation: man:nodeskoop(8)\n", e.MessageID, e.Summary)
		for _, p := range strings.Split(e.Explain, "\n\n") {
			b.WriteByte('\n')
			wrap(b, p, "")
		}
		b.WriteByte('\n')
		wrap(b, e.Grades()+" KUBESKOOP_COUNT says for how many an entry stands; without it, it is one.", "")
		steps := append(e.Next[:len(e.Next):len(e.Next)], catalog.Step{
			Command: "journalctl -t nodeskoop KUBESKOOP_EVENT=" + e.Name,
			Shows:   "how often it happened, since when, and to whom; K8S_POD=NAME leaves one pod",
		})
		b.WriteByte('\n')
		wrap(b, lookNext(steps), "")
		for _, s := range steps {
			// Keep a command on one line, so that it can be copied.
			fmt.Fprintf(b, "\n  %s\n", s.Command)
			wrap(b, s.Shows, "    ")
		}
	}
	return b.Flush()
}

// lookNext introduces the steps, and explains the words in capitals.
func lookNext(steps []catalog.Step) string {
	var means []string
	for _, p := range catalog.Placeholders {
		if slices.ContainsFunc(steps, func(s catalog.Step) bool { return s.Placeholder() == p.Word }) {
			means = append(means, p.Word+" is "+p.Means)
		}
	}
	if len(means) == 0 {
		return "What to look at next, on that node:"
	}
	return "What to look at next, on that node. " + strings.Join(means, "; ") + ":"
}

// wrap writes a paragraph in lines of at most catalogWidth.
func wrap(b *bufio.Writer, text, indent string) {
	n := 0
	for _, word := range strings.Fields(text) {
		switch {
		case n == 0:
			n, _ = b.WriteString(indent + word)
		case n+1+len(word) > catalogWidth:
			b.WriteByte('\n')
			n, _ = b.WriteString(indent + word)
		default:
			b.WriteByte(' ')
			b.WriteString(word)
			n += 1 + len(word)
		}
	}
	b.WriteByte('\n')
}
