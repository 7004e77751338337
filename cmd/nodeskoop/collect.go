package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nodeskoop/collect/trace"
	"nodeskoop/output"
)

func collectCommand() *cli.Command {
	return &cli.Command{
		Name:  "collect",
		Usage: "take one sample and write it to standard output or a file (script mode)",
		Description: "Exit code 0: every probe gave all its values. 3: some are missing, the others were written.\n" +
			"1: nothing could be written. 2: the command line is wrong.",
		Flags: append(commonFlags(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write `FILE`, whole or not at all; FOLDER/ for the configured name in that folder", EnvVars: []string{"NODESKOOP_OUTPUT"}},
			&cli.BoolFlag{Name: "events", Usage: "send the events that are seen meanwhile to the journal", EnvVars: []string{"NODESKOOP_EVENTS"}},
			&cli.DurationFlag{Name: "duration", Usage: "let the eBPF probes watch for `TIME` before the sample is taken", EnvVars: []string{"NODESKOOP_DURATION"}},
		),
		Action: collectOnce,
	}
}

func collectOnce(c *cli.Context) error {
	s, err := newSetup(c)
	if err != nil {
		return err
	}
	s.once = true
	d := c.Duration("duration")
	if d < 0 || d > 24*time.Hour {
		return cli.Exit(fmt.Sprintf("--duration: %v is out of range: use 0 to 24h", d), exitUsage)
	}
	var file *output.Textfile
	if o := c.String("output"); o != "" {
		if err := within(fileWait, func() (err error) { file, err = s.outputFile(o); return err }); err != nil {
			return fmt.Errorf("write to %s: %w", o, err)
		}
		defer func() { _ = within(time.Second, func() error { file.Close(); return nil }) }()
	}
	pods := s.watchPods(c.Context, s.cfg, s.view)
	ev := &events{plane: trace.New(trace.Options{Log: s.log})}
	if c.Bool("events") {
		ev = s.newEvents(pods, nil, journalSink(s.log))
	}
	defer ev.close(s.log)
	r, err := s.newRunner(pods, ev.plane)
	if err != nil {
		return err
	}
	defer r.Close()
	if ev.hub != nil {
		r.Self(ev.self(r))
	}
	r.Until(c.Context)
	if d > 0 {
		r.Cycle() // loads the probes
		select {
		case <-c.Context.Done():
			return c.Context.Err()
		case <-time.After(d):
		}
	}
	fams := r.Cycle()
	if err := c.Context.Err(); err != nil {
		return err // it was cut short
	}
	if file != nil {
		err = within(fileWait, func() error { return file.Write(fams) })
	} else if err = output.EncodeTo(c.App.Writer, fams, s.log); err != nil {
		err = fmt.Errorf("standard output: %w", err)
	}
	if err != nil {
		return err
	}
	var failed []string
	for _, st := range r.Status() {
		if !st.Up {
			failed = append(failed, st.Name)
		}
	}
	if len(failed) > 0 {
		return cli.Exit("these probes gave no complete values: "+strings.Join(failed, ", "), exitPartial)
	}
	return nil
}

// outputFile is the file that -o names.
func (s *setup) outputFile(o string) (*output.Textfile, error) {
	dir, name := filepath.Split(o)
	if name == "" {
		name = s.cfg.text("textfile.file")
	} else if fi, err := os.Stat(o); err == nil && fi.IsDir() {
		dir, name = o, s.cfg.text("textfile.file")
	}
	if dir == "" {
		dir = "."
	}
	mode, err := parseMode(s.cfg.text("textfile.mode"))
	if err != nil {
		return nil, err
	}
	return output.NewTextfile(dir, name, mode, s.log)
}
