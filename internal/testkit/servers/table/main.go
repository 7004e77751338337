// Command table prints the results of `make bench-servers` as tables in Markdown: what
// the default and all probes cost or, with -alone, what each probe costs.
package main

import (
	"flag"
	"fmt"
	"os"

	"nodeskoop/internal/testkit/servers"
)

func main() {
	alone := flag.Bool("alone", false, "print what each probe costs")
	flag.Parse()
	if err := print(flag.Arg(0), *alone); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

func print(file string, alone bool) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	machine, results, err := servers.Read(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	write := servers.Table
	if alone {
		write = servers.TableAlone
	}
	write(os.Stdout, results)
	fmt.Printf("\nThe machine: %s.\n", machine)
	return nil
}
