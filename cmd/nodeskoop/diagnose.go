package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/diagnose"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect/owner"
	"nodeskoop/output"
)

func diagnoseCommand() *cli.Command {
	return &cli.Command{
		Name:  "diagnose",
		Usage: "observe for some seconds, and name the causes of trouble",
		Description: "Takes two samples of the node and its pods, with the events between them, and names the causes that they show, most\n" +
			"likely first: each with its evidence, where the numbers come from, which end is to blame, and the next command.\n" +
			"Consequences of a named cause are not listed. On a healthy node it finds nothing.\n" +
			"It runs beside a daemon, and changes nothing. A fault is found only while it occurs: keep the trouble going.\n" +
			"nodeskoop docs causes prints the causes that it knows, with the evidence for each.",
		Flags: append(commonFlags(),
			&cli.DurationFlag{Name: "for", Usage: "look for `TIME`", Value: 10 * time.Second, EnvVars: []string{"NODESKOOP_FOR"}},
			&cli.StringFlag{Name: "pod", Usage: "only what concerns the pod `NAMESPACE/NAME`; NAME alone is in any namespace; \"host\" is the node", EnvVars: []string{"NODESKOOP_POD"}},
			jsonFlag("print JSON"),
		),
		Action: runDiagnose,
	}
}

func runDiagnose(c *cli.Context) error {
	took := c.Duration("for")
	if took < 2*time.Second || took > 10*time.Minute {
		return cli.Exit(fmt.Sprintf("--for: %v is out of range: use 2s to 10m", took), exitUsage)
	}
	var pods []string
	if c.IsSet("pod") {
		pods = append(pods, c.String("pod"))
	}
	filter, err := session.NewFilter(pods, nil)
	if err != nil {
		return cli.Exit(err.Error(), exitUsage)
	}
	if len(pods) > 0 && pods[0] == owner.UnknownLabel {
		return cli.Exit(fmt.Sprintf("--pod: %s is no pod: diagnose names the ends that it knows", owner.UnknownLabel), exitUsage)
	}
	s, err := newSession(c, c.App.ErrWriter)
	if err != nil {
		return err
	}
	if _, given := common(c, "probe"); !given {
		s.Config.Probes = diagnose.Probes()
	}
	s.ForPods = filter.NamesPods()
	speak := s.Hush()
	doctor, end, err := diagnose.New(c.Context, s)
	if err != nil {
		return err
	}
	defer end()
	if err := filter.Check(doctor.Running(), doctor.Named()); err != nil {
		return unknownPod(err)
	}
	var only []string
	if len(pods) > 0 {
		only = doctor.Names(filter)
	}
	report, err := doctor.Look(c.Context, took, only, func() {
		speak()
		if logIsTerminal(c.App.ErrWriter) {
			say(c.App.ErrWriter, fmt.Sprintf("Observing for %v. Keep the trouble going.", took))
		}
	})
	if err != nil && c.Context.Err() != nil {
		return fmt.Errorf("diagnose: %w before the %v were over: causes are named from a whole observation only; use a shorter --for", errInterrupted, took)
	}
	if err != nil {
		return fmt.Errorf("diagnose: %w", err)
	}
	if c.Bool("json") {
		if err := writeJSON(c, report); err != nil {
			return outputError(err)
		}
		return nil
	}
	if err := report.Write(c.App.Writer, output.Width(c.App.Writer)); err != nil {
		return outputError(err)
	}
	return nil
}
