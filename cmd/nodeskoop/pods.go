package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/internal/quote"
)

// podRow is one pod in the output of `nodeskoop pods`.
type podRow struct {
	Namespace   string            `json:"namespace"`
	Pod         string            `json:"pod"`
	UID         string            `json:"uid,omitempty"`
	ID          string            `json:"id"`
	HostNetwork bool              `json:"host_network"`
	Netns       uint64            `json:"netns,omitempty"`
	Addresses   []netip.Addr      `json:"addresses"`
	Processes   []int             `json:"processes"`
	Labels      map[string]string `json:"labels,omitempty"`
	// LabelsLeftOut is the number of labels omitted from a pod with very many.
	LabelsLeftOut int       `json:"labels_left_out,omitempty"`
	Started       time.Time `json:"started"`
}

func podsCommand() *cli.Command {
	return &cli.Command{
		Name:  "pods",
		Usage: "print the pods that containerd runs here, with their namespaces, addresses and processes",
		Description: "Exit code 1: there is no containerd here. 3: there is one, or --wait was given, and it did not list its pods\n" +
			"in time.",
		Flags: append(commonFlags(), waitFlag(), jsonFlag("print JSON")),
		Action: func(c *cli.Context) error {
			s, err := newSession(c, c.App.ErrWriter)
			if err != nil {
				return err
			}
			if s.PodsWait, err = waitTime(c); err != nil {
				return err
			}
			level := s.Level.Level()
			s.Level.Set(slog.LevelError) // the command's own last line gives the reason
			index := s.WatchPods(c.Context, s.Config, s.Host)
			s.Level.Set(level)
			if err := session.Named(index); err != nil {
				if unprivileged() {
					return needRoot(c)
				}
				code, wait := exitFailure, ""
				if s.MissingPods(index) != nil {
					code = exitPartial
					if s.PodsWait == 0 {
						wait = "--wait 30s waits longer; "
					}
				}
				return cli.Exit(fmt.Sprintf("list the pods: %v; is containerd running, and may this user open its socket? (%spods.sockets names others; nodeskoop check says who else runs containers here)", err, wait), code)
			}
			rows := []podRow{}
			for _, p := range index.Running() {
				pids, err := index.Processes(p, nil)
				if err != nil {
					s.Log.Warn("listing processes failed", "namespace", p.Namespace, "pod", p.Name, "error", err)
				}
				slices.Sort(pids)
				rows = append(rows, podRow{p.Namespace, p.Name, p.UID, p.ID, p.HostNetwork, p.Netns, append([]netip.Addr{}, p.Addrs...), append([]int{}, pids...), p.Labels, p.LabelsLeftOut, p.Started})
			}
			if c.Bool("json") {
				return writeJSON(c, rows)
			}
			lines := [][]string{{"NAMESPACE", "POD", "NETNS", "ADDRESSES", "PROCESSES"}}
			for _, r := range rows {
				netns := strconv.FormatUint(r.Netns, 10)
				if r.HostNetwork {
					netns = "host"
				} else if r.Netns == 0 {
					netns = "-"
				}
				lines = append(lines, []string{r.Namespace, r.Pod, netns, column.Dash(join(r.Addresses)), column.Dash(shorten(join(r.Processes)))})
			}
			return column.Write(c.App.Writer, lines)
		},
	}
}

func writeJSON(c *cli.Context, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = c.App.Writer.Write(append(quote.AppendSafeJSON(nil, text), '\n'))
	return err
}

func join[T any](list []T) string {
	s := make([]string, len(list))
	for i, v := range list {
		s[i] = fmt.Sprint(v)
	}
	return strings.Join(s, ",")
}

// shorten cuts a list of processes, so that the column stays readable for a pod with many.
func shorten(s string) string {
	const most = 40
	if len(s) <= most {
		return s
	}
	cut := strings.LastIndexByte(s[:most], ',')
	return s[:cut] + ",…" + strconv.Itoa(strings.Count(s[cut+1:], ",")+1) + " more"
}
