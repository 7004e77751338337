package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// printReadme prints the table of docs/kernels.md: the hooks that each probe uses on
// each kernel.
func printReadme(file string) error {
	table, err := readSupport(file)
	if err != nil {
		return err
	}
	if len(table) == 0 {
		return fmt.Errorf("%s: no such table", file)
	}
	fmt.Fprint(os.Stdout, readmeTable(table))
	return nil
}

func readmeTable(table []support) string {
	var kernels, probes []string
	uses := map[[2]string]string{}
	for _, s := range table {
		kernel := s.kernel
		if s.arch != "amd64" {
			kernel += " " + s.arch
		}
		if s.rung != byDefault {
			continue
		}
		if !slices.Contains(kernels, kernel) {
			kernels = append(kernels, kernel)
		}
		if !slices.Contains(probes, s.probe) {
			probes = append(probes, s.probe)
		}
		uses[[2]string{kernel, s.probe}] = s.result
	}
	slices.Sort(probes)
	var b strings.Builder
	fmt.Fprintf(&b, "| probe | %s |\n|---|%s\n", strings.Join(kernels, " | "), strings.Repeat("---|", len(kernels)))
	for _, p := range probes {
		cells := []string{p}
		for _, k := range kernels {
			cell, ok := uses[[2]string{k, p}]
			switch whole, partly := strings.CutSuffix(cell, " partly"); {
			case !ok:
				cell = "-"
			case partly:
				cell = whole + " (1)"
			case strings.HasPrefix(cell, "refused: "):
				cell = "no: " + strings.TrimPrefix(cell, "refused: ")
			}
			cells = append(cells, cell)
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
	}
	return b.String()
}
