package docs

import (
	"strings"
	"testing"

	"github.com/clipperhouse/displaywidth"
	"github.com/urfave/cli/v2"
)

func TestHelpIsLaidOut(t *testing.T) {
	cmd := &cli.Command{
		Name: "events", HelpName: "nodeskoop events", Usage: "print events",
		Description: strings.Repeat("a word or two ", 20),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Value: "/etc/x", Usage: "read `FILE`"},
			&cli.DurationFlag{Name: "duration", Usage: "watch for `TIME`"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON", EnvVars: []string{"NODESKOOP_JSON"}},
			&cli.StringSliceFlag{Name: "pod", Usage: "only `NAMESPACE/NAME`, " + strings.Repeat("at either end, ", 10)},
		},
	}
	var b strings.Builder
	Help(&b, "", cmd)
	got := b.String()
	for _, want := range []string{
		"nodeskoop events - print events\n\nUsage: nodeskoop events [FLAG...]\n\na word or two a word",
		"\nFlags:\n   --duration TIME      watch for TIME\n   --json               print JSON [$NODESKOOP_JSON]\n   --pod NAMESPACE/NAME\n                        only NAMESPACE/NAME, at either end,",
		"\nFlags of every command:\n   --config FILE        read FILE (default /etc/x)\n",
		"\nExamples:\n   nodeskoop events\n       watch all events\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the help lacks %q:\n%s", want, got)
		}
	}
	for line := range strings.Lines(got) {
		if n := displaywidth.String(strings.TrimSuffix(line, "\n")); n > helpWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestExamplesFit(t *testing.T) {
	for name, all := range examples {
		for _, e := range all {
			if n := len("   " + e.Line); n > helpWidth || !strings.HasPrefix(e.Line, "nodeskoop "+name) && name != "help" || e.Does == "" || strings.HasSuffix(e.Does, ".") {
				t.Errorf("%s: %d columns: %q, %q", name, n, e.Line, e.Does)
			}
		}
	}
}
