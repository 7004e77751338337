package diagnose

import (
	"fmt"
	"io"
	"regexp"
	"strings"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/internal/quote"
)

var placeholder = regexp.MustCompile(`\b(PID|PEER|DEVICE|DISK|GROUP)\b`)

// placed fills in the known placeholders of a command.
func placed(command, pid, peer, device string) string {
	return placeholder.ReplaceAllStringFunc(command, func(word string) string {
		value := ""
		switch word {
		case "PID":
			value = pid
		case "PEER":
			if !isPodName(peer) && peer != Node {
				value = peer
			}
		case "GROUP":
			if strings.HasPrefix(device, "/") {
				value = device
			}
		case "DEVICE", "DISK":
			value = deviceName(device)
		}
		if value == "" {
			return word
		}
		return shellWord(value)
	})
}

// deviceName returns the device name in the subject of a number.
func deviceName(what string) string {
	if strings.ContainsAny(what, " :,/") {
		return ""
	}
	return what
}

// shellWord returns s as one word for a shell, quoted if necessary.
func shellWord(s string) string {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.:@/", r)) {
			return quote.Shell(s)
		}
	}
	return s
}

// plainWidth is the width if the output is not a terminal.
const plainWidth = 80

// Write writes the report for a person, in lines of at most width columns if the
// words allow; 0 means 80. Commands are not wrapped, so that they can be pasted.
func (r *Report) Write(w io.Writer, width int) error {
	if width <= 0 {
		width = plainWidth
	}
	var b strings.Builder
	wrapped := func(first, then, text string) {
		for i, line := range column.Wrap(quote.SafeLine(text), width-column.Width(first)) {
			if i == 0 {
				b.WriteString(first + line + "\n")
			} else {
				b.WriteString(then + line + "\n")
			}
		}
	}
	over := fmt.Sprintf("the node and %d %s", r.Pods, plural(r.Pods, "pod", "pods"))
	if len(r.only) > 0 {
		over = strings.Join(textOf(r.only), ", ")
	}
	if len(r.Findings) == 0 {
		wrapped("", "", fmt.Sprintf("Nothing found: %s, watched for %.0f s.", over, r.Seconds))
	} else {
		wrapped("", "", fmt.Sprintf("%d %s found at %s, watched for %.0f s; the most likely first.", len(r.Findings), plural(len(r.Findings), "cause", "causes"), over, r.Seconds))
	}
	for i, f := range r.Findings {
		b.WriteByte('\n')
		n := fmt.Sprintf("%d. ", i+1)
		indent := strings.Repeat(" ", len(n))
		wrapped(n, indent, f.Title)
		wrapped(indent, indent, fmt.Sprintf("cause %s, to blame: %s", f.Cause, nameText(f.Blame)))
		for _, e := range f.Evidence {
			wrapped(indent+"- ", indent+"  ", e.Text)
			b.WriteString(indent + "  $ " + quote.SafeLine(e.Source) + "\n")
		}
		if len(f.Next) > 0 {
			b.WriteString(indent + "next:\n")
		}
		for _, step := range f.Next {
			command, shows, _ := strings.Cut(step, shownBy)
			b.WriteString(indent + "$ " + quote.SafeLine(command) + "\n")
			if shows != "" {
				wrapped(indent+"    ", indent+"    ", shows)
			}
		}
	}
	if len(r.NotLooked) > 0 {
		b.WriteString("\nNot looked at:\n")
		for _, x := range r.NotLooked {
			wrapped("- ", "  ", x.What+": "+x.Why)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func textOf(names []string) (out []string) {
	for _, n := range names {
		out = append(out, nameText(n))
	}
	return out
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
