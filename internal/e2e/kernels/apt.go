package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The archive's keys; Ubuntu has them in the package debian-archive-keyring.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

const (
	mirrorVariable   = "NODESKOOP_DEBIAN_MIRROR"
	securityVariable = "NODESKOOP_DEBIAN_SECURITY_MIRROR"
)

// apt queries Debian's archive with its own lists and settings. It does not change
// the machine's, and uses only their mirror and proxy.
type apt struct {
	dir     string
	arch    string
	config  string
	updated bool
	trouble string // error of the update
}

// mirrors returns the locations of the archive and of its security updates: from
// the environment, else from this machine's settings, else the public ones.
func mirrors() (archive, security string) {
	archive, security = os.Getenv(mirrorVariable), os.Getenv(securityVariable)
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	for _, f := range append(files, "/etc/apt/sources.list") {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		a, s := mirrorsOf(string(data))
		if archive == "" {
			archive = a
		}
		if security == "" {
			security = s
		}
	}
	if archive == "" {
		archive = "http://deb.debian.org/debian"
	}
	if security == "" {
		security = "http://deb.debian.org/debian-security"
	}
	return archive, security
}

var uri = regexp.MustCompile(`(?m)^(?:URIs:|deb(?: +\[[^]]*\])?) +(https?://[^ \n]+)`)

func mirrorsOf(sources string) (archive, security string) {
	for _, m := range uri.FindAllStringSubmatch(sources, -1) {
		switch u := strings.TrimSuffix(m[1], "/"); {
		case strings.Contains(u, "/linux/"): // other projects' archives, "download.example.org/linux/debian"
		case strings.HasSuffix(u, "/debian") && archive == "":
			archive = u
		case strings.HasSuffix(u, "/debian-security") && security == "":
			security = u
		}
	}
	return archive, security
}

func newApt(dir, arch string) (*apt, error) {
	for _, p := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(p); err != nil {
			return nil, fmt.Errorf("downloading Debian's packages needs %s: run this on Debian or Ubuntu", p)
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("%w: install debian-archive-keyring (make deps does)", err)
	}
	a := &apt{dir: dir, arch: arch, config: filepath.Join(dir, "apt.conf")}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	archive, security := mirrors()
	var sources strings.Builder
	for _, s := range [][2]string{
		{security, "bullseye-security"},
		{archive, "bookworm"}, {security, "bookworm-security"},
		{archive, "trixie"}, {security, "trixie-security"}, {archive, "trixie-backports"},
	} {
		fmt.Fprintf(&sources, "deb [signed-by=%s arch=%s] %s %s main\n", keyring, arch, s[0], s[1])
	}
	config := fmt.Sprintf(`Dir::State "%[1]s/state";
Dir::State::lists "%[1]s/lists";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
APT::Architecture "%[2]s";
APT::Architectures { "%[2]s"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
`, dir, arch) + proxies()
	return a, errors.Join(
		os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources.String()), 0o644),
		os.WriteFile(filepath.Join(dir, "status"), nil, 0o644),
		os.WriteFile(a.config, []byte(config), 0o644),
	)
}

// proxies are the machine's own proxy settings.
func proxies() string {
	out, err := exec.Command("apt-config", "dump").Output()
	if err != nil {
		return ""
	}
	var b strings.Builder
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "Acquire::") && strings.Contains(line, "::Proxy") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func (a *apt) run(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+a.config, "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// update reads the archive's lists, once. A missing suite does not affect the
// others, so its error is only reported if a package is not found.
func (a *apt) update() {
	if a.updated {
		return
	}
	a.updated = true
	fmt.Fprintf(os.Stderr, "reading the lists of Debian's archive for %s\n", a.arch)
	if _, err := a.run(a.dir, "apt-get", "-q", "update"); err != nil {
		a.trouble = err.Error()
	}
}

func (a *apt) notFound(what string) error {
	if a.trouble != "" {
		return fmt.Errorf("the Debian archive does not give %s; its lists could not all be read: %s", what, a.trouble)
	}
	return fmt.Errorf("the Debian archive no longer has %s", what)
}

var imageName = regexp.MustCompile(`^linux-image-(\d+)\.(\d+)\.(\d+)(?:-(\d+)|\+deb(\d+)(?:\.(\d+))?)(?:-(cloud|rt))?-(?:amd64|arm64)$`)

// version returns the numbers in a kernel package's name, nil if there are none or the
// package is of another flavour.
func version(name, flavour string) []int {
	m := imageName.FindStringSubmatch(name)
	if m == nil || cmp.Or(m[7], generic) != flavour {
		return nil
	}
	var v []int
	for _, s := range m[1:7] {
		n, _ := strconv.Atoi(s)
		v = append(v, n)
	}
	return v
}

// images returns the kernel packages of a series ("6.1", "6.12-rt"), newest first; for
// "newest" those of any series.
func images(names []string, series string) []string {
	number, flavour, _ := strings.Cut(series, "-")
	flavour = cmp.Or(flavour, cloud)
	found := slices.DeleteFunc(slices.Clone(names), func(n string) bool {
		v := version(n, flavour)
		return v == nil || number != newest && fmt.Sprintf("%d.%d", v[0], v[1]) != number
	})
	slices.SortFunc(found, func(x, y string) int { return slices.Compare(version(y, flavour), version(x, flavour)) })
	return found
}

// kernelPackages returns the packages of a series' newest kernel.
func (a *apt) kernelPackages(series string) ([]string, error) {
	a.update()
	out, err := a.run(a.dir, "apt-cache", "pkgnames", "linux-image-")
	if err != nil {
		return nil, err
	}
	for _, name := range images(strings.Fields(out), series) {
		// A name may be known only because another package depends on it.
		show, err := a.run(a.dir, "apt-cache", "show", "--no-all-versions", name)
		if err != nil || !strings.Contains(show, "\nFilename: ") {
			continue
		}
		packages := []string{name}
		// Newer kernels come in several packages.
		for _, part := range []string{"linux-binary-", "linux-modules-"} {
			if p := part + strings.TrimPrefix(name, "linux-image-"); strings.Contains(show, p) {
				packages = append(packages, p)
			}
		}
		return packages, nil
	}
	return nil, a.notFound("a kernel " + series + " for " + a.arch)
}

// closure returns packages with all their dependencies.
func (a *apt) closure(names []string) ([]string, error) {
	a.update()
	out, err := a.run(a.dir, "apt-get", append([]string{"install", "-qq", "--print-uris"}, names...)...)
	if err != nil {
		return nil, errors.Join(a.notFound("all of "+strings.Join(names, " ")), err)
	}
	var packages []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 2 {
			name, _, _ := strings.Cut(f[1], "_")
			packages = append(packages, name)
		}
	}
	return packages, nil
}

// download returns the files of packages, below dir. apt verifies them with the
// archive's signed lists.
func (a *apt) download(dir string, packages []string) ([]string, error) {
	a.update()
	if _, err := a.run(dir, "apt-get", append([]string{"-qq", "download"}, packages...)...); err != nil {
		return nil, fmt.Errorf("download %s: %w", strings.Join(packages, " "), err)
	}
	return filepath.Glob(filepath.Join(dir, "*.deb"))
}

// unpack calls f for each file and link in a package.
func unpack(deb string, f func(h *tar.Header, r io.Reader) error) error {
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", deb)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := tar.NewReader(out)
	for {
		var h *tar.Header
		if h, err = r.Next(); err != nil {
			break
		}
		if err = f(h, r); err != nil {
			break
		}
	}
	if errors.Is(err, io.EOF) {
		_, err = io.Copy(io.Discard, out)
	}
	out.Close()
	if waited := cmd.Wait(); err == nil {
		err = waited
	}
	if err != nil {
		return fmt.Errorf("unpack %s: %w %s", filepath.Base(deb), err, strings.TrimSpace(errs.String()))
	}
	return nil
}
