package check

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/quote"
	"nodeskoop/output"
	"nodeskoop/output/history"
)

// folder checks the folder of the textfile.
func (k *checker) folder() Finding {
	const name = "textfile folder"
	dir := k.path(k.cfg.Textfile.Dir)
	word := quote.Shell(dir)
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Finding{name, Bad, dir + " does not exist", "apt install prometheus-node-exporter, or mkdir -p " + word + ", or set textfile.dir"}
	case err != nil:
		return Finding{name, Bad, err.Error(), "run it as root"}
	case !fi.IsDir():
		return Finding{name, Bad, dir + " is not a folder", "set textfile.dir to the folder that node_exporter reads"}
	}
	f, err := os.CreateTemp(dir, ".nodeskoop-check-*.tmp")
	if err != nil {
		do := "run it as root, or give this user the folder: chown " + strconv.Itoa(k.uid) + " " + word
		switch {
		case errors.Is(err, unix.EROFS):
			do = "mount it writable; in a unit ReadWritePaths=" + word + " (systemctl edit nodeskoop)"
		case errors.Is(err, unix.ENOSPC):
			do = "make room there: df -h " + word + "; df -i " + word
		case k.uid == 0:
			do = "the folder is another user's: give the daemon CAP_DAC_OVERRIDE, or chown root " + word
		}
		return Finding{name, Bad, "cannot write there: " + err.Error(), do}
	}
	defer os.Remove(f.Name())
	// On a full disk an empty file can be created, so write data.
	_, err = f.Write(make([]byte, 64<<10))
	if err = errors.Join(err, f.Close()); err != nil {
		return Finding{name, Bad, "cannot write there: " + err.Error(), "make room there: df -h " + word}
	}
	if fi.Mode().Perm()&0o005 != 0o005 {
		return Finding{name, Warning, fmt.Sprintf("%s can be written, but its mode %#o keeps node_exporter's user out", dir, fi.Mode().Perm()), "chmod 0755 " + word}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil {
		if free := st.Bavail * uint64(st.Bsize); free < 64<<20 {
			return Finding{name, Warning, fmt.Sprintf("%s has %d MiB left; a full node's file takes about 5 MiB, twice while it is replaced", dir, free>>20), "make room there: df -h " + word}
		}
	}
	return Finding{name, Good, dir + " can be written", ""}
}

// file checks the present textfile.
func (k *checker) file() Finding {
	const name = "textfile"
	path := k.path(filepath.Join(k.cfg.Textfile.Dir, k.cfg.Textfile.File))
	word := quote.Shell(path)
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if k.daemon() != 0 {
			return Finding{name, Warning, path + " is not there, although the daemon runs", "journalctl -u nodeskoop -p err"}
		}
		return Finding{name, Good, path + " is not there yet", ""}
	case err != nil:
		return Finding{name, Bad, err.Error(), "run it as root"}
	case !fi.Mode().IsRegular():
		return Finding{name, Bad, path + " is not a regular file, and is not replaced", "look at it (ls -ld " + word + "), and set another textfile.file"}
	case fi.Mode().Perm()&0o004 == 0:
		return Finding{name, Warning, fmt.Sprintf("%s has mode %#o: node_exporter's user cannot read it", path, fi.Mode().Perm()), `textfile.mode = "0644"; chmod 0644 ` + word}
	}
	age := k.now.Sub(fi.ModTime()).Round(time.Second)
	found := fmt.Sprintf("%s, %d bytes, mode %#o, %v old", path, fi.Size(), fi.Mode().Perm(), age)
	if age < -time.Second {
		return Finding{name, Warning, found + ": written in the future", "look at the clock below"}
	}
	// The timer runs every minute.
	if limit := max(3*k.cfg.Interval, 3*time.Minute); age > limit {
		return Finding{name, Warning, found + ": no process updates it, and node_exporter keeps serving it", "systemctl restart nodeskoop, or rm " + word}
	}
	return Finding{name, Good, found, ""}
}

// state checks the folder of the counters.
func (k *checker) state() Finding {
	const name = "state folder"
	if !k.cfg.State.Counters {
		return Finding{name, Good, "counters are not kept over restarts (state.counters = false)", ""}
	}
	dir := k.path(k.cfg.StateDir())
	do := "run it as root, or set state.dir to a folder that this user may write"
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		parent := filepath.Dir(dir)
		if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
			return Finding{name, Warning, dir + " is not there, and cannot be made: " + err.Error() + "; counters fall at a restart", do}
		}
		return Finding{name, Good, dir + " is not there yet", ""}
	case err != nil:
		return Finding{name, Warning, err.Error() + "; counters fall at a restart", do}
	case !fi.IsDir():
		return Finding{name, Warning, dir + " is not a folder; counters fall at a restart", "set state.dir to a folder"}
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		if errors.Is(err, unix.EROFS) {
			do = "mount it writable; in a unit StateDirectory=nodeskoop (systemctl edit nodeskoop)"
		}
		return Finding{name, Warning, "cannot write in " + dir + ": " + err.Error() + "; counters fall at a restart", do}
	}
	return Finding{name, Good, dir + " can be written", ""}
}

// history checks the history on the node.
func (k *checker) history() Finding {
	const name = "history"
	if !k.cfg.History.Enabled {
		return Finding{name, Good, "off (history.enabled = false)", ""}
	}
	dir := k.path(k.cfg.HistoryDir())
	oldest, bytes, err := (&history.Reader{Dir: dir}).Span()
	switch {
	case err != nil:
		return Finding{name, Warning, err.Error(), "run it as root; if that is no help, look at the folder with ls -ld " + quote.Shell(dir)}
	case oldest.IsZero():
		return Finding{name, Good, "nothing in " + dir + " yet: a minute is written when it is over", ""}
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return Finding{name, Warning, "cannot write in " + dir + ": " + err.Error() + "; the history pauses", "make it writable, or set state.dir or history.enabled = false"}
	}
	return Finding{name, Good, fmt.Sprintf("%.1f MB since %s, of at most %s", float64(bytes)/1e6, oldest.Local().Format("2006-01-02 15:04"), k.cfg.History.Max), ""}
}

// maxTextfile limits the bytes read of another writer's file, maxTextfiles those of
// all files, and maxOtherFiles the number of files.
const (
	maxTextfile   = 16 << 20
	maxTextfiles  = 64 << 20
	maxOtherFiles = 1000
)

// otherWriters looks for our metrics in the folder's other files.
func (k *checker) otherWriters() []Finding {
	const name = "other writers"
	dir := k.path(k.cfg.Textfile.Dir)
	names, err := filepath.Glob(filepath.Join(globEscape(dir), "*.prom"))
	hidden, _ := filepath.Glob(filepath.Join(globEscape(dir), ".*.prom")) // node_exporter reads hidden files too
	if err != nil {
		return nil
	}
	var out []Finding
	looked, room := 0, int64(maxTextfiles)
	for _, path := range append(names, hidden...) {
		if filepath.Base(path) == k.cfg.Textfile.File {
			continue
		}
		if looked == maxOtherFiles || room <= 0 {
			out = append(out, Finding{name, Warning, fmt.Sprintf("only the first %d other .prom files were inspected", looked), "ls " + quote.Shell(dir)})
			break
		}
		looked++
		word := quote.Shell(path)
		families, read, err := familiesIn(path, min(maxTextfile, room))
		room -= read
		if errors.Is(err, errLink) {
			out = append(out, Finding{name, Warning, path + " is a symbolic link: node_exporter reads its target, which was not checked", "ls -l " + word})
			continue
		}
		if err != nil {
			out = append(out, Finding{name, Bad, err.Error(), "mv " + word + " away: node_exporter cannot use it either"})
			continue
		}
		var ours []string
		for _, f := range families {
			if catalog.MetricByName(f) != nil {
				ours = append(ours, f)
			}
		}
		if len(ours) == 0 {
			continue
		}
		who := "another program"
		if slices.Contains(ours, "nodeskoop_build_info") {
			who = "nodeskoop in another mode, or under an earlier name of its file,"
		}
		more := ""
		if len(ours) > 3 {
			more = fmt.Sprintf(" and %d more", len(ours)-3)
			ours = ours[:3]
		}
		out = append(out, Finding{name, Bad, fmt.Sprintf("%s, by %s, has metrics of this tool: %s%s. node_exporter shows the first of two equal series, whichever that is", path, who, strings.Join(ours, ", "), more),
			"stop that writer (systemctl disable --now nodeskoop-collect.timer, or its cron job) and rm " + word})
	}
	if looked == 0 {
		return []Finding{{name, Good, "there is no other .prom file in the folder", ""}}
	}
	if len(out) == 0 {
		return []Finding{{name, Good, fmt.Sprintf("none of the %d other .prom files in the folder has metrics of this tool", looked), ""}}
	}
	return out
}

// globEscape escapes a path for use in a pattern.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// familiesIn returns the names of the metric families in the first `most` bytes of
// a textfile, and the number of bytes read.
func familiesIn(path string, most int64) ([]string, int64, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	r := &io.LimitedReader{R: f, N: most}
	names, err := families(r)
	return names, most - r.N, err
}

// families returns the family names in a text exposition, in order, without
// duplicates.
func families(r io.Reader) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if name := familyOf(line); name != "" && !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
		for errors.Is(err, bufio.ErrBufferFull) { // skip the rest of a long line
			_, err = lines.ReadSlice('\n')
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
	}
}

// familyOf returns the family name of a line, "" if it has none.
func familyOf(line []byte) string {
	s := strings.TrimLeft(string(line[:min(len(line), 512)]), " \t")
	if rest, ok := strings.CutPrefix(s, "#"); ok {
		f := strings.Fields(rest)
		if len(f) < 2 || f[0] != "HELP" && f[0] != "TYPE" {
			return ""
		}
		return f[1]
	}
	end := strings.IndexFunc(s, func(r rune) bool {
		return r != '_' && r != ':' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if end < 0 {
		return ""
	}
	return s[:end]
}

// runningExporter is a running node_exporter.
type runningExporter struct {
	machineProcess
	dirs    []string
	without bool // its textfile collector is disabled
}

// exporterProcesses returns all running node_exporters.
func (k *checker) exporterProcesses() []runningExporter {
	var out []runningExporter
	for _, p := range k.processesNamed("node_exporter", "prometheus-node-exporter") {
		e := runningExporter{machineProcess: p, dirs: textfileDirs(p.args[1:])}
		if len(e.dirs) == 0 && p.name == "prometheus-node-exporter" {
			e.dirs = []string{"/var/lib/prometheus/node-exporter"} // Debian's default
		}
		on := false
		for _, a := range p.args[1:] {
			switch strings.TrimLeft(a, "-") {
			case "collector.textfile":
				on = true
			case "no-collector.textfile", "collector.disable-defaults":
				e.without = true
			}
		}
		e.without = e.without && !on
		out = append(out, e)
	}
	return out
}

// exporters checks the running node_exporters.
func (k *checker) exporters() Finding { return k.judgeExporters(k.exporterProcesses()) }

// judgeExporters requires one node_exporter that reads the folder. Text from
// processes appears only in Found, never in Do, whose commands root may paste.
func (k *checker) judgeExporters(all []runningExporter) Finding {
	const name = "node_exporter"
	dir := k.cfg.Textfile.Dir
	flag := "--collector.textfile.directory=" + quote.Shell(dir)
	var doubted []string
	var worst Finding
	note := func(v Verdict, found, do string) {
		if worst.Verdict != Bad {
			worst = Finding{name, v, found, do}
		}
	}
	for _, e := range all {
		who := "process " + e.pid
		if e.doubt != "" {
			doubted = append(doubted, fmt.Sprintf("%s calls itself %s, but %s", who, e.name, e.doubt))
			continue
		}
		// A node_exporter in a container is not restarted from this machine.
		severity, restart := Bad, "start it with "+flag
		if !k.sameRoot(e.pid) {
			severity, who = Warning, who+", which has a root folder of its own,"
			restart = "if it is to read this node's textfiles: mount " + quote.Shell(dir) + " there, and start it with --collector.textfile.directory= that folder"
		}
		if e.without {
			note(severity, who+" has its textfile collector switched off", strings.Replace(restart, "start it with ", "start it with --collector.textfile ", 1))
			continue
		}
		d, ok, err := k.readsFolder(e.pid, e.dirs, dir)
		switch {
		case ok:
			found := who + " reads " + d
			if filepath.Clean(d) != filepath.Clean(dir) {
				found += ", which is " + dir
			}
			return Finding{name, Good, found, ""}
		case len(e.dirs) == 0:
			note(severity, who+" reads no textfiles", restart)
		case err != nil:
			note(Warning, fmt.Sprintf("whether %s reads %s is unknown: %v", who, dir, err), restart)
		default:
			note(severity, who+" reads "+strings.Join(e.dirs, ", ")+", not "+dir, restart+"; or set textfile.dir to a folder that it reads")
		}
	}
	if worst.Check == "" {
		worst = Finding{name, Warning, "none runs here that this process can see", "apt install prometheus-node-exporter; in a container it must mount " + quote.Shell(dir)}
	}
	if len(doubted) > 0 {
		const most = 3
		more := ""
		if len(doubted) > most {
			doubted, more = doubted[:most], fmt.Sprintf(" and %d more", len(doubted)-most)
		}
		worst.Found += " (not counted: " + strings.Join(doubted, "; ") + more + ")"
	}
	return worst
}

// textfileDirs returns the textfile folders on a node_exporter's command line.
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

// daemon returns the PID of a daemon that runs with this configuration, 0 if there
// is none.
func (k *checker) daemon() int {
	for _, p := range k.processesNamed("nodeskoop") {
		if p.doubt == "" && slices.Contains(p.args[1:], "run") && configOf(p.args) == cmp.Or(k.cfg.File, config.DefaultFile) {
			pid, _ := strconv.Atoi(p.pid)
			return pid
		}
	}
	return 0
}

// daemonRights checks the capabilities of the running daemon, which its unit may
// restrict further than those of the checking process.
func (k *checker) daemonRights() []Finding {
	pid := k.daemon()
	if pid == 0 {
		return nil
	}
	const name = "daemon's rights"
	have, err := kernel.Capabilities(k.path("/proc"), pid)
	if err != nil {
		return []Finding{{name, Warning, err.Error(), "run it as root"}}
	}
	of := *k
	of.capabilities = have
	var out []Finding
	for _, f := range of.capabilityLines() {
		if f.Verdict != Good {
			out = append(out, Finding{name, f.Verdict, fmt.Sprintf("process %d: %s %s", pid, f.Check, f.Found),
				"systemctl edit nodeskoop: [Service] CapabilityBoundingSet=" + f.Check + "; systemctl restart nodeskoop"})
		}
	}
	if len(out) == 0 {
		return []Finding{{name, Good, fmt.Sprintf("process %d has the capabilities that its probes need", pid), ""}}
	}
	return out
}

// configOf returns the configuration file that a command line names.
func configOf(args []string) string {
	for i, a := range args {
		for _, flag := range []string{"--config", "-config", "-c", "--c"} {
			if v, ok := strings.CutPrefix(a, flag+"="); ok {
				return v
			}
			if a == flag && i+1 < len(args) {
				return args[i+1]
			}
		}
	}
	return config.DefaultFile
}

// modes checks that only one of daemon and timer is active, since both would write
// the textfile.
func (k *checker) modes() Finding {
	const name = "daemon or timer"
	enabled := func(link string) bool {
		_, err := os.Lstat(k.path("/etc/systemd/system/" + link))
		return err == nil
	}
	pid := k.daemon()
	daemon, timer := enabled("multi-user.target.wants/nodeskoop.service"), enabled("timers.target.wants/nodeskoop-collect.timer")
	switch {
	case timer && (daemon || pid != 0):
		return Finding{name, Bad, "nodeskoop-collect.timer is enabled and the daemon is, too, or runs: both write the textfile",
			"systemctl disable --now nodeskoop-collect.timer, or systemctl disable --now nodeskoop"}
	case pid != 0:
		return Finding{name, Good, "the daemon runs, process " + strconv.Itoa(pid), ""}
	case timer:
		return Finding{name, Good, "nodeskoop-collect.timer is enabled", ""}
	case daemon:
		return Finding{name, Warning, "nodeskoop.service is enabled, but does not run", "systemctl start nodeskoop; journalctl -u nodeskoop"}
	}
	return Finding{name, Warning, "neither is active: no process writes the textfile", "systemctl enable --now nodeskoop, or nodeskoop run"}
}

// journal checks the journal that receives events, and its rate limits.
func (k *checker) journal() []Finding {
	const name = "journald"
	socket := k.path(output.DefaultJournalSocket)
	namespace, from := k.logNamespace()
	if namespace != "" {
		// In the unit's mount namespace, systemd mounts this folder over that of
		// the default journal.
		socket = k.path("/run/systemd/journal." + namespace + "/socket")
	}
	if err := output.JournalAvailable(socket); err != nil {
		return []Finding{{name, Warning, "events go to standard error as JSON lines: " + err.Error(), "systemctl start systemd-journald.socket systemd-journald; in a container mount " + filepath.Dir(output.DefaultJournalSocket)}}
	}
	out := []Finding{{name, Good, socket + " takes entries", ""}}
	if namespace != "" {
		out = append(out, Finding{"journal namespace", Good, fmt.Sprintf("%s (%s): journalctl --namespace=%s shows the service's entries, plain journalctl does not", namespace, from, namespace), ""})
	}
	return append(out, k.journalStorage(), k.journalRate())
}

// logNamespace returns the journal namespace of the service, "" for the default
// journal, and the file that sets it.
func (k *checker) logNamespace() (name, from string) {
	name, from = k.iniValue("system/nodeskoop.service", "LogNamespace")
	if !namespaceName.MatchString(name) {
		return "", "" // systemd accepts no other names
	}
	return name, from
}

// LogNamespace is the journal namespace of the service on this machine, "" for the
// default journal.
func LogNamespace() string {
	name, _ := (&checker{}).logNamespace()
	return name
}

// namespaceName matches valid journal namespaces, since a path is made from the name.
var namespaceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// journaldConf returns the configuration file of a namespace's journald.
func journaldConf(namespace string) string {
	if namespace == "" {
		return "journald.conf"
	}
	return "journald@" + namespace + ".conf"
}

// iniDirs are systemd's configuration directories, highest precedence first.
var iniDirs = []string{"/etc/systemd/", "/run/systemd/", "/usr/local/lib/systemd/", "/usr/lib/systemd/", "/lib/systemd/"}

// iniValue returns the value of a key from a systemd configuration file and its
// drop-ins, and the file that sets it. An empty assignment resets earlier ones.
func (k *checker) iniValue(main, key string) (value, from string) {
	var files []string
	for _, d := range iniDirs {
		if _, err := os.Stat(k.path(d + main)); err == nil {
			files = append(files, d+main)
			break
		}
	}
	dropIns := map[string]string{}
	for _, d := range slices.Backward(iniDirs) {
		names, _ := filepath.Glob(globEscape(k.path(d+main)) + ".d/*.conf")
		for _, n := range names {
			dropIns[filepath.Base(n)] = d + main + ".d/" + filepath.Base(n)
		}
	}
	bases := make([]string, 0, len(dropIns))
	for b := range dropIns {
		bases = append(bases, b)
	}
	slices.Sort(bases)
	for _, b := range bases {
		files = append(files, dropIns[b])
	}
	for _, f := range files {
		b, err := bounded.ReadFile(k.path(f), 1<<20)
		if err != nil {
			continue
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			if name, v, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == key {
				value, from = strings.TrimSpace(v), f
			}
		}
	}
	if value == "" {
		from = ""
	}
	return value, from
}

// systemdUnits are the time units of systemd.time(7) used for limits.
var systemdUnits = map[string]time.Duration{
	"": time.Second, "s": time.Second, "sec": time.Second, "second": time.Second, "seconds": time.Second,
	"us": time.Microsecond, "usec": time.Microsecond, "µs": time.Microsecond, "ms": time.Millisecond, "msec": time.Millisecond,
	"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour, "days": 24 * time.Hour, "w": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour, "weeks": 7 * 24 * time.Hour,
}

// parseSystemdTime parses a time span such as "30s", "1min 30s" or "5".
func parseSystemdTime(s string) (time.Duration, bool) {
	var sum time.Duration
	s = strings.TrimSpace(s)
	if s == "" {
		return 0, false
	}
	for s != "" {
		end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
		if end < 0 {
			end = len(s)
		}
		n, err := strconv.ParseFloat(s[:end], 64)
		if err != nil {
			return 0, false
		}
		s = strings.TrimLeft(s[end:], " ")
		end = strings.IndexFunc(s, func(r rune) bool { return r >= '0' && r <= '9' || r == ' ' })
		if end < 0 {
			end = len(s)
		}
		unit, ok := systemdUnits[s[:end]]
		if !ok || n*float64(unit) > float64(1<<62) {
			return 0, false
		}
		if sum += time.Duration(n * float64(unit)); sum < 0 {
			return 0, false
		}
		s = strings.TrimLeft(s[end:], " ")
	}
	return sum, true
}

// journaldUnit returns the unit of a namespace's journald.
func journaldUnit(namespace string) string {
	if namespace == "" {
		return "systemd-journald"
	}
	return "systemd-journald@" + namespace
}

func (k *checker) journalStorage() Finding {
	const name = "journal storage"
	namespace, _ := k.logNamespace()
	storage, from := k.iniValue(journaldConf(namespace), "Storage")
	if storage == "" && namespace != "" {
		storage = "persistent" // the default in a journal namespace
	}
	if from != "" {
		from = " (" + from + ")"
	}
	_, err := os.Stat(k.path("/var/log/journal"))
	switch {
	case storage == "none":
		return Finding{name, Warning, "none" + from + ": events are not stored", "set Storage=persistent in /etc/systemd/" + journaldConf(namespace) + "; systemctl restart " + journaldUnit(namespace)}
	case storage == "persistent" || storage != "volatile" && err == nil:
		return Finding{name, Good, "persistent" + from, ""}
	}
	return Finding{name, Warning, "volatile" + from + ": events are lost at the next boot", "mkdir -p /var/log/journal; systemctl restart systemd-journald"}
}

// journalRate compares journald's rate limit with the daemon's maximum rate. Limits
// in the unit take precedence.
func (k *checker) journalRate() Finding {
	const name = "journal rate limit"
	namespace, _ := k.logNamespace()
	interval, burst, from := 30*time.Second, 10000, "journald's default"
	use := func(file, prefix string) {
		if v, f := k.iniValue(file, prefix+"RateLimitIntervalSec"); f != "" {
			if d, ok := parseSystemdTime(v); ok && (d > 0 || prefix == "") {
				interval, from = d, f
			}
		}
		if v, f := k.iniValue(file, prefix+"RateLimitBurst"); f != "" {
			if n, err := strconv.Atoi(v); err == nil && (n > 0 || prefix == "") {
				burst, from = n, f
			}
		}
	}
	use(journaldConf(namespace), "")
	use("system/nodeskoop.service", "Log")
	rate := int(k.cfg.Journal.TotalRate)
	if interval <= 0 || burst <= 0 {
		return Finding{name, Good, fmt.Sprintf("none (%s); the daemon writes at most %d events a second", from, rate), ""}
	}
	allowed := float64(burst) / interval.Seconds()
	found := fmt.Sprintf("%d in %v (%s): %.0f a second at least; journal.total_rate is %d", burst, interval, from, allowed, rate)
	if allowed >= float64(rate) {
		return Finding{name, Good, found, ""}
	}
	return Finding{name, Warning, found + ". journald drops the entries beyond this limit, and nodeskoop_events_written_total counts them as written",
		fmt.Sprintf("set journal.total_rate = %d, or LogRateLimitIntervalSec=1s and LogRateLimitBurst=20000 in the unit (systemctl edit nodeskoop)", max(1, int(allowed)))}
}
