package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// verdict is how one check came out.
type verdict string

const (
	good    verdict = "ok"
	warning verdict = "warn"
	bad     verdict = "FAIL"
)

// finding is one line of `nodeskoop check`.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Found   string  `json:"found"`
	Do      string  `json:"do,omitempty"`
}

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:        "check",
		Usage:       "test the configuration and this machine, and say what to do about each failure",
		Description: "Exit code 0: nothing failed (warnings may stand). 1: something did.",
		Flags:       append(commonFlags(), &cli.BoolFlag{Name: "json", Usage: "print JSON"}),
		Action: func(c *cli.Context) error {
			findings := runChecks(c)
			if c.Bool("json") {
				if err := writeJSON(c, findings); err != nil {
					return err
				}
			} else {
				w := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
				for _, f := range findings {
					fmt.Fprintf(w, "%s\t%s\t%s\n", f.Verdict, f.Check, f.Found)
					if f.Do != "" {
						fmt.Fprintf(w, "\t\t-> %s\n", f.Do)
					}
				}
				if err := w.Flush(); err != nil {
					return err
				}
			}
			n := 0
			for _, f := range findings {
				if f.Verdict == bad {
					n++
				}
			}
			if n > 0 {
				return cli.Exit(fmt.Sprintf("%d of %d checks failed", n, len(findings)), exitFailure)
			}
			return nil
		},
	}
}

func runChecks(c *cli.Context) []finding {
	s, err := newSetup(c)
	if err != nil {
		return []finding{{"configuration", bad, err.Error(), "mend what the message names; nodeskoop config --default prints the shipped file"}}
	}
	from := s.cfg.File
	if from == "" {
		from = "no file, the defaults"
	}
	findings := []finding{{"configuration", good, from, ""}, checkKernel()}
	findings = append(findings, checkCapabilities()...)
	findings = append(findings, checkFolder(s.cfg), checkExporter(s.cfg, "/proc"), checkContainerd(c, s), checkJournal())
	return append(findings, checkProbes(s)...)
}

func checkKernel() finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return finding{"kernel", bad, err.Error(), ""}
	}
	found := "Linux " + unix.ByteSliceToString(u.Release[:])
	if _, err := os.Stat("/proc/self/net/snmp"); err != nil {
		return finding{"kernel", bad, found + "; procfs: " + err.Error(), "mount procfs on /proc"}
	}
	return finding{"kernel", good, found, ""}
}

// needs are the capabilities that the procfs and netlink probes use.
var needs = []struct {
	bit  int
	name string
	why  string
}{
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "all probes: to tell the network namespaces of processes apart"},
	{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "fd: to list the descriptors of other users' processes"},
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "qdisc, conntrack, tcpsummary: to enter the network namespaces of pods"},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "conntrack: to read its statistics"},
}

func checkCapabilities() []finding {
	have, err := effectiveCapabilities()
	if err != nil {
		return []finding{{"capabilities", bad, err.Error(), ""}}
	}
	var missing []finding
	for _, n := range needs {
		if have&(1<<n.bit) == 0 {
			missing = append(missing, finding{"capabilities", bad, "without " + n.name + " (" + n.why + ")",
				"run as root, or add " + n.name + " to CapabilityBoundingSet= and AmbientCapabilities= of the unit"})
		}
	}
	if len(missing) > 0 {
		return missing
	}
	return []finding{{"capabilities", good, "all that the probes need", ""}}
}

// effectiveCapabilities reads the set of this process.
func effectiveCapabilities() (uint64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(b, []byte("CapEff:"))
	if !ok {
		return 0, errors.New("/proc/self/status has no line CapEff")
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return strconv.ParseUint(strings.TrimSpace(string(line)), 16, 64)
}

func checkFolder(cfg *Config) finding {
	dir := cfg.text("textfile.dir")
	const name = "textfile folder"
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return finding{name, bad, dir + " does not exist", "apt install prometheus-node-exporter, or mkdir -p " + dir + ", or set textfile.dir"}
	case err != nil:
		return finding{name, bad, err.Error(), ""}
	case !fi.IsDir():
		return finding{name, bad, dir + " is not a folder", "set textfile.dir"}
	}
	f, err := os.CreateTemp(dir, ".nodeskoop-check-*.tmp")
	if err != nil {
		return finding{name, bad, "cannot write there: " + err.Error(), "run as root, or give this user the folder; CAP_DAC_OVERRIDE where it belongs to the exporter's user"}
	}
	_ = f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return finding{name, bad, err.Error(), ""}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil {
		if free := st.Bavail * uint64(st.Bsize); free < 64<<20 {
			return finding{name, warning, fmt.Sprintf("%s has %d MiB left", dir, free>>20), "a full node's file takes about 5 MiB, twice while it is replaced"}
		}
	}
	return finding{name, good, dir + " can be written", ""}
}

// checkExporter looks at the node_exporter that runs here, if one does.
func checkExporter(cfg *Config, proc string) finding {
	const name = "node_exporter"
	dir := cfg.text("textfile.dir")
	cmdlines, _ := filepath.Glob(proc + "/[0-9]*/cmdline")
	for _, path := range cmdlines {
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			continue
		}
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if exe := filepath.Base(args[0]); exe != "node_exporter" && exe != "prometheus-node-exporter" {
			continue
		}
		pid := filepath.Base(filepath.Dir(path))
		dirs := textfileDirs(args[1:])
		if len(dirs) == 0 && filepath.Base(args[0]) == "prometheus-node-exporter" {
			dirs = []string{"/var/lib/prometheus/node-exporter"} // Debian's default
		}
		if len(dirs) == 0 {
			return finding{name, bad, "process " + pid + " reads no textfiles", "start it with --collector.textfile.directory=" + dir}
		}
		for _, d := range dirs {
			if ok, _ := filepath.Match(d, dir); ok || filepath.Clean(d) == filepath.Clean(dir) {
				return finding{name, good, "process " + pid + " reads " + d, ""}
			}
		}
		return finding{name, bad, "process " + pid + " reads " + strings.Join(dirs, ", ") + ", not " + dir,
			fmt.Sprintf("set textfile.dir = %q, or start it with --collector.textfile.directory=%s", dirs[0], dir)}
	}
	return finding{name, warning, "none runs here", "apt install prometheus-node-exporter; in a container it must mount " + dir}
}

// textfileDirs finds the folders on a node_exporter's command line.
func textfileDirs(args []string) []string {
	var dirs []string
	for i, a := range args {
		a = strings.TrimLeft(a, "-")
		if v, ok := strings.CutPrefix(a, "collector.textfile.directory="); ok {
			dirs = append(dirs, v)
		} else if a == "collector.textfile.directory" && i+1 < len(args) {
			dirs = append(dirs, args[i+1])
		}
	}
	return slices.DeleteFunc(dirs, func(d string) bool { return d == "" })
}

func checkContainerd(c *cli.Context, s *setup) finding {
	const name = "containerd"
	index := s.watchPods(c.Context, s.cfg)
	st := index.Status()
	if !index.Connected() {
		return finding{name, warning, fmt.Sprintf("does not answer: %v", st.Err),
			"without it only the host's own series are written; if it runs, set pods.sockets"}
	}
	return finding{name, good, fmt.Sprintf("%s answers on %s, %d pods", st.Version, st.Socket, len(index.Running())), ""}
}

func checkJournal() finding {
	const socket = "/run/systemd/journal/socket"
	if _, err := os.Stat(socket); err != nil {
		return finding{"journald", warning, socket + " is not there", "without journald events go to standard error"}
	}
	return finding{"journald", good, socket, ""}
}

func checkProbes(s *setup) []finding {
	rows, err := s.tryProbes()
	if err != nil {
		return []finding{{"probes", bad, err.Error(), ""}}
	}
	var out []finding
	works := 0
	for _, r := range rows {
		switch {
		case r.Enabled && r.Works:
			works++
		case r.Enabled:
			out = append(out, finding{"probe " + r.Probe, bad, firstLine(r.Reason), "mend the cause, or leave it out: probes.enabled = [\"default\", \"-" + r.Probe + "\"]"})
		}
	}
	return append(out, finding{"probes", good, fmt.Sprintf("%d of %d enabled probes work", works, works+len(out)), ""})
}
