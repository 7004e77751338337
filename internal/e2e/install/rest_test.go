package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/pods"
)

// filtered matches losses caused by a netfilter rule.
const filtered = "KUBESKOOP_REASON=NETFILTER_DROP"

// brief restricts the output to the fields that counting needs.
const brief = "--output-fields=KUBESKOOP_EVENT,KUBESKOOP_COUNT"

// reader reads and parses the textfile continuously, as fast as it can.
type reader struct {
	stop  chan struct{}
	done  chan struct{}
	reads int
	errs  []error
}

func (s *suite) startReader() *reader {
	r := &reader{stop: make(chan struct{}), done: make(chan struct{})}
	path := s.root + textfile
	go func() {
		defer close(r.done)
		for {
			select {
			case <-r.stop:
				return
			default:
			}
			b, err := os.ReadFile(path)
			var f families
			if err == nil {
				f, err = tryParse(b)
			}
			if err == nil && f["nodeskoop_build_info"] == nil {
				err = fmt.Errorf("%d bytes without nodeskoop_build_info", len(b))
			}
			if err != nil && len(r.errs) < 5 {
				r.errs = append(r.errs, err)
			}
			r.reads++
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return r
}

func (r *reader) end() {
	close(r.stop)
	<-r.done
}

// dropping runs something while a rule drops packets to a pod's UDP port 9, and
// returns how many the rule dropped.
func (s *suite) dropping(p *pods.Pod, do func()) int {
	s.Helper()
	s.in(p, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in udp dport 9 counter drop")
	do()
	out := s.in(p, "nft", "list", "chain", "inet", "t", "in")
	s.in(p, "nft", "delete table inet t")
	m := regexp.MustCompile(`packets ([0-9]+) `).FindStringSubmatch(out)
	if m == nil {
		s.Fatalf("the rule has no counter:\n%s", out)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// restarts restarts each program that nodeskoop talks to, one after another, while
// events are caused.
func (s *suite) restarts() {
	t := s.T
	s.configure("journal.rate", "5000", "journal.burst", "5000")
	// Merged occurrences of earlier drops are written at the end, and the windows
	// of a new daemon are short.
	s.run("systemctl", "restart", unit)
	s.nextCycles(2)
	pid := s.property(unit, "MainPID")
	restarted := s.property(unit, "NRestarts")
	before := accountsOf(parse(t, []byte(s.read(textfile))))
	drops, resets := occurrences(s.podEvents("PacketLoss", s.web, filtered, brief)), occurrences(s.podEvents("TCPRESET_NOSOCK", s.web, brief))
	counted := s.podValue("kubeskoop_packetloss_netfilter", "shop", "web-0")
	r := s.startReader()

	// The load must not depend on containerd, which is stopped meanwhile.
	const perSecond, most = 150, 60 * 150
	stop := make(chan struct{})
	type result struct {
		refused int
		err     error
	}
	refusing := make(chan result)
	caused := s.dropping(s.web, func() {
		load := s.command("nsenter", "-t", strconv.Itoa(s.client.PID), "-n", "/srv"+causeProgram, "datagrams", v4(s.web, 9), strconv.Itoa(most), "100", strconv.Itoa(perSecond))
		held := testkit.Hold(t, load)
		go func() {
			var r result
			for {
				select {
				case <-stop:
					refusing <- r
					return
				default:
				}
				if _, err := s.try("nsenter", "-t", strconv.Itoa(s.client.PID), "-n", "/srv"+causeProgram, "refused", v6(s.web, 7), "5"); err != nil {
					r.err = err
					refusing <- r
					return
				}
				r.refused += 5
			}
		}()
		s.nextCycles(3)
		for _, name := range []string{"containerd", "systemd-journald", "prometheus-node-exporter"} {
			s.run("systemctl", "restart", name)
			s.nextCycles(3)
			if now := s.property(unit, "MainPID"); now != pid {
				t.Errorf("the restart of %s made our process %s into %s", name, pid, now)
				pid = now
			}
		}
		_ = held.End()
	})
	close(stop)
	rs := <-refusing
	if rs.err != nil || rs.refused == 0 || caused < perSecond {
		t.Errorf("%d drops and %d refused connections were caused: %v", caused, rs.refused, rs.err)
	}
	s.ctd.Await()

	// Nothing that was caused is unaccounted for.
	s.until("all drops are counted", 10*time.Second, func() error {
		if v := s.podValue("kubeskoop_packetloss_netfilter", "shop", "web-0") - counted; v != float64(caused) {
			return fmt.Errorf("%v of %d", v, caused)
		}
		return nil
	})
	type found struct {
		event              string
		caused, told, kept int
	}
	tell := func() (list []found) {
		after := s.accounted()
		for _, f := range []found{
			{"PacketLoss", caused, occurrences(s.podEvents("PacketLoss", s.web, filtered, brief)) - drops, 0},
			{"TCPRESET_NOSOCK", rs.refused, occurrences(s.podEvents("TCPRESET_NOSOCK", s.web, brief)) - resets, 0},
		} {
			f.kept = int(after[f.event].suppressed - before[f.event].suppressed + after[f.event].lost - before[f.event].lost)
			list = append(list, f)
		}
		return list
	}
	var list []found
	_ = s.awaits(longWindow, func() error {
		list = tell()
		for _, f := range list {
			if f.told+f.kept < f.caused {
				return fmt.Errorf("%d of %d times %s", f.told+f.kept, f.caused, f.event)
			}
		}
		return nil
	})
	for _, f := range list {
		if f.told > f.caused || f.told+f.kept < f.caused {
			t.Errorf("%s: %d caused, %d in the journal, and %d told as suppressed or lost", f.event, f.caused, f.told, f.kept)
		}
		t.Logf("containerd, journald and node_exporter restarted: %d times %s caused, %d in the journal, %d told as suppressed or lost", f.caused, f.event, f.told, f.kept)
	}
	r.end()
	for _, err := range r.errs {
		t.Errorf("a reader found the textfile torn or missing: %v", err)
	}
	t.Logf("the textfile was read %d times meanwhile", r.reads)
	if v := s.property(unit, "NRestarts"); v != restarted {
		t.Errorf("the service was restarted: NRestarts was %s, is %s", restarted, v)
	}

	// A pod started after the restart of containerd must get its name.
	late := s.ctd.RunPod(pods.PodSpec{Namespace: "shop", Name: "late-0", Containers: []pods.ContainerSpec{{Name: "main"}}})
	s.until("a pod that starts now is in the scrape", 15*time.Second, func() error {
		f := s.scrape()
		if up, _ := f.value("nodeskoop_containerd_up"); up != 1 {
			return errors.New("nodeskoop_containerd_up is not 1")
		}
		for _, name := range []string{"late-0", "web-0"} {
			if _, n := f.value("kubeskoop_tcp_insegs", "k8s_namespace", "shop", "k8s_pod", name); n != 1 {
				return fmt.Errorf("kubeskoop_tcp_insegs has %d series of %s", n, name)
			}
		}
		if v, _ := f.value("node_textfile_scrape_error"); v != 0 {
			return errors.New("node_textfile_scrape_error is not 0")
		}
		return nil
	})
	late.Remove()
	s.configure("journal.rate", "1", "journal.burst", "20")
}

// override changes the unit as an operator would, and restarts the service.
func (s *suite) override(settings string) {
	s.Helper()
	const file = "/etc/systemd/system/nodeskoop.service.d/override.conf"
	if settings == "" {
		s.run("rm", "-r", filepath.Dir(file))
	} else {
		s.write(file, settings)
	}
	s.restart()
}

// restart restarts the service with the current unit. It does not count towards the
// unit's start limit.
func (s *suite) restart() {
	s.Helper()
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "reset-failed", unit)
	s.run("systemctl", "restart", unit)
}

// watchdog: a hanging daemon is restarted, an idle one is not. With the shipped
// unit, a daemon that was stopped for a while continues.
func (s *suite) watchdog() {
	t := s.T
	s.edit("interval", `"30s"`)
	s.override("[Service]\nWatchdogSec=3\nRestartSec=1\n")
	// Ready means that the first textfile exists, so it was written before.
	ready, err := time.Parse("Mon 2006-01-02 15:04:05.000000 MST", strings.TrimSpace(s.run("systemctl", "show", unit, "--value", "--timestamp=us+utc", "-p", "ActiveEnterTimestamp")))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(s.root + textfile); err != nil || st.ModTime().After(ready) {
		t.Errorf("the service was ready at %v, before its first textfile was written (%v)", ready, err)
	}
	pid := s.property(unit, "MainPID")
	at := func() string {
		return regexp.MustCompile(`(?m)^nodeskoop_last_cycle_timestamp_seconds.*$`).FindString(s.read(textfile))
	}
	cycle := at()
	time.Sleep(10 * time.Second) // three times as long as the watchdog waits
	if now := at(); now != cycle {
		t.Fatalf("the daemon sampled within its interval: %q, then %q", cycle, now)
	}
	if now, n := s.property(unit, "MainPID"), s.property(unit, "NRestarts"); now != pid || n != "0" {
		t.Errorf("an interval longer than WatchdogSec: process %s became %s, NRestarts=%s", pid, now, n)
	}
	s.run("kill", "-STOP", pid)
	stopped := time.Now()
	s.until("systemd restarts a daemon that stands still", 40*time.Second, func() error {
		if now, state := s.property(unit, "MainPID"), s.property(unit, "ActiveState"); now == pid || now == "0" || state != "active" {
			return fmt.Errorf("process %s is %s", now, state)
		}
		return nil
	})
	t.Logf("restarted %v after it was stopped", time.Since(stopped).Round(100*time.Millisecond))
	if out := s.run("journalctl", "-b", "-q", "_PID=1", "UNIT="+unit, "-o", "cat"); !strings.Contains(out, "Watchdog timeout") {
		t.Errorf("systemd does not say that it was the watchdog:\n%s", tail(out))
	}
	s.edit("interval", `"1s"`)
	s.override("")
	s.nextCycles(2)
	pid = s.property(unit, "MainPID")
	const gap = 20 * time.Second // longer than the shortest reported gap
	told := func() (n int, out string) {
		// Read the log of this process alone. A cursor would depend on the order of
		// entries in the files that journald left when it was restarted.
		out = s.run("journalctl", "-b", "-q", "_PID="+pid, "-o", "cat")
		for _, m := range regexp.MustCompile(`no samples between \S+ and \S+ \(([^)]*)\)`).FindAllStringSubmatch(out, -1) {
			// A busy machine may stall as well, but for a shorter time.
			if d, err := time.ParseDuration(m[1]); err != nil || d >= gap {
				n++
			}
		}
		return n, out
	}
	before, _ := told()
	since := time.Now()
	s.run("kill", "-STOP", pid)
	time.Sleep(gap)
	s.run("kill", "-CONT", pid)
	s.nextCycles(2)
	if now, n := s.property(unit, "MainPID"), s.property(unit, "NRestarts"); now != pid || n != "0" {
		t.Errorf("stopped for 20 s: process %s became %s, NRestarts=%s", pid, now, n)
	}
	n, out := 0, ""
	testkit.Within(testkit.Patience, func() bool { // journald receives the entry slightly later
		n, out = told()
		return n > before
	})
	if n != before+1 {
		t.Errorf("the gap is told %d times:\n%s\nall of the time:\n%s\n%s\n%s", n-before, tail(out),
			tail(s.run("journalctl", "-b", "-q", "-o", "short-precise", fmt.Sprintf("--since=@%d", since.Unix()))),
			regexp.MustCompile(`(?m)^nodeskoop_gap_seconds_total.*$`).FindAllString(s.read(textfile), -1), s.run("systemctl", "status", "--no-pager", "-n", "0", unit))
	}
}

// logNamespace: with the shipped drop-in, events and the log go only to nodeskoop's
// own journal, through the socket that systemd mounts over the default one, and check
// says where they are.
func (s *suite) logNamespace() {
	t := s.T
	const examples = "/usr/share/doc/nodeskoop/examples/"
	const dropIn = "/etc/systemd/system/nodeskoop.service.d"
	s.run("mkdir", "-p", dropIn)
	s.run("cp", examples+"log-namespace.conf", dropIn)
	s.run("cp", examples+"journald@nodeskoop.conf", "/etc/systemd")
	cursor := s.cursor()
	s.restart()
	s.nextCycles(2)
	pid := s.property(unit, "MainPID")
	seen := strings.Fields(s.run("stat", "-L", "-c", "%d:%i", "/proc/"+pid+"/root/run/systemd/journal/socket", "/run/systemd/journal.nodeskoop/socket", "/run/systemd/journal/socket"))
	if len(seen) != 3 || seen[0] != seen[1] || seen[0] == seen[2] {
		t.Errorf("the sockets that the daemon sees, of the namespace, and of all: %v", seen)
	}
	const mark = 7 // connections that are refused
	for range mark {
		_, _ = s.try("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9")
	}
	own := func(args ...string) string {
		return s.run("journalctl", append([]string{"--namespace=nodeskoop", "-b", "-q", "_SYSTEMD_UNIT=" + unit, "-o", "cat"}, args...)...)
	}
	s.until("events are in the namespace", 20*time.Second, func() error {
		if out := own("KUBESKOOP_EVENT=TCPRESET_NOSOCK"); out == "" {
			return fmt.Errorf("it has\n%s", tail(own()))
		}
		return nil
	})
	if out := own(); !strings.Contains(out, "wrote the first textfile") {
		t.Errorf("the log is not in the namespace:\n%s", tail(out))
	}
	if out := s.run("journalctl", "-q", "--after-cursor="+cursor, "_PID="+pid, "-o", "cat"); strings.TrimSpace(out) != "" {
		t.Errorf("the journal of all has entries of it:\n%s", tail(out))
	}
	if out, _ := s.try("nodeskoop", "check"); !strings.Contains(out, "journalctl --namespace=nodeskoop shows the service's entries") {
		t.Errorf("check does not say where the entries are:\n%s", out)
	}
	t.Logf("the namespace: %s", s.run("journalctl", "--namespace=nodeskoop", "--disk-usage"))
	s.run("rm", "-r", dropIn, "/etc/systemd/journald@nodeskoop.conf")
	s.restart()
	s.nextCycles(2)
}

// aptInstall installs a package of the same name, whatever its version.
func (s *suite) aptInstall(deb string, options ...string) {
	s.Helper()
	args := append([]string{"-qq", "install", "-y", "--allow-downgrades"}, options...)
	s.run("apt-get", append(args, deb)...)
}

func (s *suite) version() string {
	s.Helper()
	return strings.TrimSpace(s.run("dpkg-query", "-W", "-f", "${Version}", "nodeskoop"))
}

// errorsSince returns what the service itself has logged at err or above since a moment.
func (s *suite) errorsSince(cursor string) string {
	s.Helper()
	out := s.run("journalctl", "-b", "-q", "-u", unit, "-p", "err", "-o", "cat", "--after-cursor="+cursor)
	return strings.TrimSpace(out)
}

func (s *suite) cursor() string {
	s.Helper()
	out := s.run("journalctl", "-b", "-q", "-n", "1", "--show-cursor", "-o", "cat")
	_, c, ok := strings.Cut(out, "-- cursor: ")
	if !ok {
		s.Fatalf("journalctl shows no cursor:\n%s", out)
	}
	return strings.TrimSpace(c)
}

// upgrade installs newer and older versions in turn.
func (s *suite) upgrade() {
	t := s.T
	edited := s.read(conffile)
	was, pid, cursor := s.version(), s.property(unit, "MainPID"), s.cursor()
	r := s.startReader()
	s.aptInstall(s.deb)
	r.end()
	torn := slices.DeleteFunc(r.errs, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }) // between stop and start there is no textfile
	if len(torn) > 0 {
		t.Errorf("a reader found the textfile torn at the upgrade: %v", torn)
	}
	now := s.property(unit, "MainPID")
	if v := s.property(unit, "ActiveState"); v != "active" || now == pid || s.version() == was {
		t.Errorf("after the upgrade of %s to %s the service is %s, its process %s, before %s", was, s.version(), v, now, pid)
	}
	if !s.exists(textfile) {
		t.Error("after the upgrade there is no textfile")
	}
	if out := s.errorsSince(cursor); out != "" {
		t.Errorf("the upgrade made the service log errors:\n%s", out)
	}
	if s.read(conffile) != edited {
		t.Error("the upgrade changed the configuration that was edited")
	}
	s.until("a scrape after the upgrade", 10*time.Second, func() error {
		f := s.scrape()
		if v, _ := f.value("node_textfile_scrape_error"); v != 0 {
			return errors.New("node_textfile_scrape_error is not 0")
		}
		if _, n := f.value("kubeskoop_tcp_insegs", "k8s_pod", "web-0"); n != 1 {
			return errors.New("web-0 has no series yet")
		}
		return nil
	})

	// The next version has another conffile: dpkg keeps what was edited. The folder
	// now belongs to node_exporter's user, as on Fedora; afterwards it still does,
	// and the folder can be written.
	folder := filepath.Dir(textfile)
	s.run("chown", "prometheus:prometheus", folder)
	defer s.run("chown", "root:root", folder)
	s.aptInstall(s.newer, "-o", "Dpkg::Options::=--force-confold")
	if s.read(conffile) != edited {
		t.Error("the upgrade to a version with another conffile changed what was edited")
	}
	if owner := strings.TrimSpace(s.run("stat", "-c", "%U:%G", folder)); owner != "prometheus:prometheus" || !s.exists(textfile) {
		t.Errorf("%s, which belonged to prometheus, is of %s after the upgrade; our file is there: %v", folder, owner, s.exists(textfile))
	}
	if !s.exists(conffile + ".dpkg-dist") {
		t.Errorf("dpkg has not left the new conffile as %s.dpkg-dist", conffile)
	}

	// A user who has disabled the service keeps it disabled.
	s.run("systemctl", "disable", "--now", unit)
	if s.exists(textfile) {
		t.Error("a stopped service leaves its textfile")
	}
	state := func(unit string) string {
		out, _ := s.try("systemctl", "is-enabled", unit)
		return strings.TrimSpace(out)
	}
	for _, deb := range []string{s.deb, s.newer, s.older} {
		s.aptInstall(deb, "-o", "Dpkg::Options::=--force-confold")
		for _, u := range []string{unit, "nodeskoop-collect.timer"} {
			if v, active := state(u), s.property(u, "ActiveState"); v != "disabled" || active != "inactive" {
				t.Errorf("version %s: %s, which was disabled, is %s and %s", s.version(), u, v, active)
			}
		}
	}
	if s.read(conffile) != edited {
		t.Error("a downgrade changed the configuration that was edited")
	}
	s.run("systemctl", "enable", "--now", unit)
	if !s.exists(textfile) || state(unit) != "enabled" {
		t.Errorf("the service is %s after systemctl enable --now, and its textfile there: %v", state(unit), s.exists(textfile))
	}
	pid = s.property(unit, "MainPID")
	s.aptInstall(s.deb, "-o", "Dpkg::Options::=--force-confold")
	if v, now := s.property(unit, "ActiveState"), s.property(unit, "MainPID"); v != "active" || now == pid || state("nodeskoop-collect.timer") != "disabled" {
		t.Errorf("after one more upgrade the service is %s, its process %s, before %s; the timer is %s", v, now, pid, state("nodeskoop-collect.timer"))
	}
}

// scriptMode: the timer replaces the daemon, but does not run beside it.
func (s *suite) scriptMode() {
	t := s.T
	const timer = "nodeskoop-collect.timer"
	pid := s.property(unit, "MainPID")
	out, err := s.try("systemctl", "enable", "--now", timer)
	if err == nil || !strings.Contains(err.Error(), "nodeskoop") {
		t.Errorf("systemctl enable --now %s beside the daemon is not refused with a message: %v\n%s", timer, err, out)
	}
	t.Logf("enabling both: %v", err)
	out, err = s.try("systemctl", "start", timer)
	if v := s.property(timer, "ActiveState"); v == "active" {
		t.Errorf("systemctl start %s beside the daemon starts it: %v\n%s", timer, err, out)
	}
	t.Logf("starting both: %v", err)
	enabled := func(after string, units ...string) {
		t.Helper()
		for _, u := range units {
			if out, _ := s.try("systemctl", "is-enabled", u); strings.TrimSpace(out) != "enabled" {
				t.Errorf("%s %s is %s", after, u, strings.TrimSpace(out))
			}
		}
	}
	enabled("after enabling the timer beside the daemon", timer, unit)
	s.run("systemctl", "disable", timer)
	enabled("after disabling the timer", unit)
	if v, now := s.property(unit, "ActiveState"), s.property(unit, "MainPID"); v != "active" || now != pid {
		t.Errorf("trying to enable the timer made the daemon %s, its process %s into %s", v, pid, now)
	}

	s.run("systemctl", "disable", "--now", unit)
	s.run("systemctl", "enable", "--now", timer)
	s.until("the timer's first sample is in the scrape", 30*time.Second, func() error {
		if !s.exists(textfile) {
			return errors.New("no textfile yet")
		}
		if _, n := s.scrape().value("kubeskoop_tcp_insegs", "k8s_pod", "web-0"); n != 1 {
			return errors.New("web-0 has no series")
		}
		return nil
	})
	s.until("the sample is done", 30*time.Second, func() error {
		if v := s.property("nodeskoop-collect.service", "Result"); v != "success" || s.property("nodeskoop-collect.service", "ActiveState") != "inactive" {
			return fmt.Errorf("its result is %s", v)
		}
		return nil
	})
	// The daemon replaces the timer in the same way.
	if _, err := s.try("systemctl", "enable", "--now", unit); err == nil || !strings.Contains(err.Error(), "nodeskoop") {
		t.Errorf("systemctl enable --now %s beside the timer is not refused with a message: %v", unit, err)
	} else {
		t.Logf("enabling both: %v", err)
	}
	enabled("after enabling the daemon beside the timer", timer, unit)
	_, err = s.try("systemctl", "start", unit)
	if err == nil {
		t.Error("systemctl start of the daemon beside the timer does not fail")
	}
	if log := s.run("journalctl", "-u", unit, "-n", "20", "-o", "cat"); !strings.Contains(log, "nodeskoop-collect.timer is active and writes the same textfile, "+textfile+": run systemctl disable --now nodeskoop-collect.timer first") {
		t.Errorf("the journal does not say who holds the textfile:\n%s", log)
	}
	if status, restarts := s.property(unit, "ExecMainStatus"), s.property(unit, "NRestarts"); status != "4" || restarts != "0" {
		t.Errorf("the daemon beside the timer ended with exit code %s, and was started again %s times", status, restarts)
	}
	t.Logf("starting the daemon beside the timer: %v; the timer is %s, the daemon %s", err, s.property(timer, "ActiveState"), s.property(unit, "ActiveState"))
	if s.property(timer, "ActiveState") == "active" && s.property(unit, "ActiveState") == "active" {
		t.Error("the timer and the daemon both run")
	}
	s.run("systemctl", "disable", "--now", timer, unit)
	s.run("systemctl", "enable", "--now", unit)
	if v := s.property(unit, "ActiveState"); v != "active" || !s.exists(textfile) {
		t.Errorf("back to the daemon: it is %s, its textfile there: %v", v, s.exists(textfile))
	}
}

// purge: removing the package keeps the configuration, purging it removes everything.
func (s *suite) purge() {
	t := s.T
	edited := s.read(conffile)
	// Neither has a reason for a warning, such as a folder that is not empty.
	quietly := func(what string) {
		t.Helper()
		if out := s.run("sh", "-c", "apt-get -qq "+what+" -y nodeskoop 2>&1"); strings.Contains(strings.ToLower(out), "warning") {
			t.Errorf("apt-get %s warns:\n%s", what, out)
		}
	}
	quietly("remove")
	for _, path := range []string{textfile, "/usr/sbin/nodeskoop"} {
		if s.exists(path) {
			t.Errorf("%s is there after remove", path)
		}
	}
	if out, _ := s.try("pgrep", "-x", "nodeskoop"); out != "" {
		t.Errorf("after remove there are processes: %s", out)
	}
	if !s.exists(conffile) || s.read(conffile) != edited {
		t.Error("remove did not keep the configuration that was edited")
	}
	s.until("the scrape has no series of ours any more", 10*time.Second, func() error {
		f := s.scrape()
		for name := range f {
			if strings.HasPrefix(name, "kubeskoop_") || strings.HasPrefix(name, "nodeskoop_") {
				return errors.New(name)
			}
		}
		return nil
	})
	s.aptInstall(s.deb, "-o", "Dpkg::Options::=--force-confold")
	if v := s.property(unit, "ActiveState"); v != "active" || s.read(conffile) != edited {
		t.Errorf("installed again, the service is %s, the configuration kept: %v", v, s.read(conffile) == edited)
	}
	quietly("purge")
	for _, file := range s.rules {
		s.run("rm", file) // remove the operator's copy
	}
	s.leftovers("purge")
	if v := s.property(unit, "LoadState"); v != "not-found" {
		t.Errorf("after purge %s is %s", unit, v)
	}
}

// leftovers checks that the machine has the same files as at the start.
func (s *suite) leftovers(after string) {
	t := s.T
	t.Helper()
	now := s.files()
	for _, f := range now {
		if _, had := slices.BinarySearch(s.before, f); !had {
			t.Errorf("%s leaves %s", after, f)
		}
	}
	for _, f := range s.before {
		if _, has := slices.BinarySearch(now, f); !has {
			t.Errorf("%s takes away %s", after, f)
		}
	}
}

// rpmPackage installs the rpm as Fedora or RHEL would: units are disabled by
// preset, and nothing starts. The machine's systemd is real, but its distribution
// is Debian, so dependencies are not checked.
func (s *suite) rpmPackage() {
	t := s.T
	from := os.Getenv("NODESKOOP_INSTALL_RPM")
	if from == "" {
		t.Fatal("NODESKOOP_INSTALL_RPM names no package")
	}
	rpm := "/srv/" + filepath.Base(from)
	copyFile(t, from, s.root+rpm, 0o644)
	// Folders that belong to Fedora's filesystem package, or to the shells.
	s.run("mkdir", "-p", "/usr/share/licenses", "/usr/share/fish/vendor_completions.d", "/usr/share/zsh/site-functions")
	s.write("/etc/systemd/system-preset/10-like-fedora.preset", "disable *\n")
	s.before = s.files()

	do := func(args ...string) string {
		t.Helper()
		return s.run("rpm", append([]string{"--dbpath", "/srv/rpmdb"}, args...)...)
	}
	// Debian 12's rpm installs nothing without this option, which Debian 13's does not
	// know.
	force := []string{"--force-debian"}
	if _, err := s.try("rpm", force[0], "--version"); err != nil {
		force = nil
	}
	do(append(slices.Clone(force), "--nodeps", "-i", rpm)...)
	if out := strings.TrimSpace(do("-qc", "nodeskoop")); out != conffile {
		t.Errorf("rpm -qc: %q, want %s", out, conffile)
	}
	flags := do("-q", "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", "nodeskoop")
	if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(conffile) + ` .*c.*n|^` + regexp.QuoteMeta(conffile) + ` .*n.*c`).MatchString(flags) {
		t.Errorf("%s is not config(noreplace):\n%s", conffile, flags)
	}
	for path, want := range map[string]string{
		"/usr/sbin/nodeskoop": "-rwxr-xr-x root root",
		conffile:              "-rw-r--r-- root root",
		"/usr/lib/systemd/system/nodeskoop.service":         "-rw-r--r-- root root",
		"/usr/lib/systemd/system/nodeskoop-collect.service": "-rw-r--r-- root root",
		"/usr/lib/systemd/system/nodeskoop-collect.timer":   "-rw-r--r-- root root",
		"/usr/lib/systemd/catalog/nodeskoop.catalog":        "-rw-r--r-- root root",
		"/usr/lib/tmpfiles.d/nodeskoop.conf":                "-rw-r--r-- root root",
		"/usr/share/man/man8/nodeskoop.8.gz":                "-rw-r--r-- root root",
		"/usr/share/bash-completion/completions/nodeskoop":  "-rw-r--r-- root root",
	} {
		out := do("-q", "--qf", "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]", "nodeskoop")
		if !strings.Contains(out, want+" "+path+"\n") {
			t.Errorf("the rpm does not have %s as %s:\n%s", path, want, out)
		}
	}
	if out, err := s.try("rpm", "--dbpath", "/srv/rpmdb", "-V", "--nodeps", "nodeskoop"); err != nil {
		t.Errorf("rpm -V: %v\n%s", err, out)
	}
	state := func(what, unit string) string {
		out, _ := s.try("systemctl", what, unit)
		return strings.TrimSpace(out)
	}
	for _, u := range []string{unit, "nodeskoop-collect.timer"} {
		if v, active := state("is-enabled", u), state("is-active", u); v != "disabled" || active != "inactive" {
			t.Errorf("after rpm -i %s is %s and %s, want disabled and inactive as the preset says", u, v, active)
		}
	}
	if out := s.run("journalctl", "--dump-catalog", table(t, "events.tsv")[0]["message_id"]); !strings.Contains(out, "Defined-By: nodeskoop") {
		t.Errorf("after rpm -i the catalog lacks our entries:\n%s", out)
	}
	s.run("systemctl", "enable", "--now", unit)
	if !s.exists(textfile) {
		t.Error("the service of the rpm writes no textfile")
	}

	// Upgrade to the same version, which the scripts cannot distinguish from a
	// newer one.
	s.write(conffile, setKey(t, s.read(conffile), "", "interval", `"2s"`))
	edited, pid := s.read(conffile), s.property(unit, "MainPID")
	do(append(slices.Clone(force), "--nodeps", "-U", "--force", rpm)...)
	if v, now := state("is-active", unit), s.property(unit, "MainPID"); v != "active" || now == pid || state("is-enabled", unit) != "enabled" {
		t.Errorf("after rpm -U the service is %s and %s, its process %s, before %s", v, state("is-enabled", unit), now, pid)
	}
	if s.read(conffile) != edited {
		t.Error("rpm -U changed the configuration that was edited")
	}

	do("-e", "nodeskoop")
	if s.exists(textfile) {
		t.Error("rpm -e leaves the textfile")
	}
	if out, _ := s.try("pgrep", "-x", "nodeskoop"); out != "" {
		t.Errorf("after rpm -e there are processes: %s", out)
	}
	// rpm keeps an edited configuration under another name, and nothing else.
	if !s.exists(conffile + ".rpmsave") {
		t.Errorf("rpm -e has not kept what was edited as %s.rpmsave", conffile)
	}
	s.run("rm", "-f", conffile+".rpmsave")
	if _, err := s.try("rmdir", "--ignore-fail-on-non-empty", filepath.Dir(conffile)); err != nil && s.exists(filepath.Dir(conffile)) {
		t.Error(err)
	}
	s.leftovers("rpm -e")
}
