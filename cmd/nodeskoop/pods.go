package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
)

// podRow is one pod as `nodeskoop pods` prints it.
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
	// LabelsLeftOut counts further labels, of a pod that has very many.
	LabelsLeftOut int       `json:"labels_left_out,omitempty"`
	Started       time.Time `json:"started"`
}

func podsCommand() *cli.Command {
	return &cli.Command{
		Name:  "pods",
		Usage: "print the pods that containerd runs here, with their namespaces, addresses and processes",
		Flags: append(commonFlags(), jsonFlag("print JSON")),
		Action: func(c *cli.Context) error {
			s, err := newSetup(c)
			if err != nil {
				return err
			}
			level := s.level.Level()
			s.level.Set(slog.LevelError) // the end says why containerd does not answer
			index := s.watchPods(c.Context, s.cfg)
			s.level.Set(level)
			if !index.Connected() {
				err := cmp.Or(index.Status().Err, errors.New("no answer yet"))
				return fmt.Errorf("list the pods: %w; is containerd running, and may this user open its socket? (pods.sockets names others)", err)
			}
			rows := []podRow{}
			for _, p := range index.Running() {
				pids, err := index.Processes(p, nil)
				if err != nil {
					s.log.Warn("listing processes failed", "namespace", p.Namespace, "pod", p.Name, "error", err)
				}
				slices.Sort(pids)
				rows = append(rows, podRow{p.Namespace, p.Name, p.UID, p.ID, p.HostNetwork, p.Netns, append([]netip.Addr{}, p.Addrs...), append([]int{}, pids...), p.Labels, p.LabelsLeftOut, p.Started})
			}
			if c.Bool("json") {
				return writeJSON(c, rows)
			}
			w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "NAMESPACE\tPOD\tNETNS\tADDRESSES\tPROCESSES")
			for _, r := range rows {
				netns := strconv.FormatUint(r.Netns, 10)
				if r.HostNetwork {
					netns = "host"
				} else if r.Netns == 0 {
					netns = "-"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Namespace, r.Pod, netns, dash(join(r.Addresses)), dash(shorten(join(r.Processes))))
			}
			return w.Flush()
		},
	}
}

func writeJSON(c *cli.Context, v any) error {
	e := json.NewEncoder(c.App.Writer)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func join[T any](list []T) string {
	s := make([]string, len(list))
	for i, v := range list {
		s[i] = fmt.Sprint(v)
	}
	return strings.Join(s, ",")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// shorten keeps a column readable where a pod has many processes.
func shorten(s string) string {
	const most = 40
	if len(s) <= most {
		return s
	}
	cut := strings.LastIndexByte(s[:most], ',')
	return s[:cut] + ",…" + strconv.Itoa(strings.Count(s[cut+1:], ",")+1) + " more"
}
