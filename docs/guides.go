// Package docs embeds the guides: the hand-written pages of this folder, whose
// names are in lower case. Pages in upper case are generated from the catalogue,
// and the program generates them itself.
package docs

import (
	"embed"
	"strings"
)

//go:embed [a-z]*.md
var pages embed.FS

// Guide is one page in Markdown.
type Guide struct {
	// Name is the page's file name without ".md".
	Name string
	// Title is the page's first heading.
	Title string
	// Text is the whole page.
	Text string
}

// Guides returns all guides, sorted by name.
func Guides() []Guide {
	entries, err := pages.ReadDir(".")
	if err != nil {
		panic(err) // impossible: the folder is embedded
	}
	guides := make([]Guide, 0, len(entries))
	for _, e := range entries {
		text, err := pages.ReadFile(e.Name())
		if err != nil {
			panic(err)
		}
		g := Guide{Name: strings.TrimSuffix(e.Name(), ".md"), Text: string(text)}
		first, _, _ := strings.Cut(g.Text, "\n")
		g.Title = strings.TrimPrefix(first, "# ")
		guides = append(guides, g)
	}
	return guides
}
