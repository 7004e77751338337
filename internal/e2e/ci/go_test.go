package ci

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGetGo: a Go that can build the project is kept. If there is none, Debian's is
// unpacked: the version that go.mod names rather than a newer one. If Debian has
// none either, the message says what is needed.
func TestGetGo(t *testing.T) {
	const (
		fits  = "#!/bin/sh\necho go version go1.26.9\n"
		older = "#!/bin/sh\necho 'go: errors parsing go.mod: invalid go version' >&2\nexit 1\n"
		// A stub for apt-cache: a package is there if $PACKAGES says so.
		cache = "#!/bin/sh\ncase $1 in\npkgnames) printf '%s\\n' $PACKAGES golang-1.26-doc ;;\nshow) case \" $PACKAGES \" in *\" $3 \"*) echo 'Filename: pool/x.deb' ;; *) exit 100 ;; esac ;;\nesac\n"
		get   = "#!/bin/sh\nfor last; do :; done\ncase \" $* \" in *' download '*) touch \"$last.deb\" ;; esac\n"
	)
	// A stub for dpkg-deb: it unpacks a Go that prints which package it comes from.
	unpack := func(stub string) string {
		return "#!/bin/sh\nversion=${2##*golang-} version=${version%-*}\nmkdir -p \"$3/usr/lib/go-$version/bin\"\ncat > \"$3/usr/lib/go-$version/bin/go\" <<'END'\n" + stub + "END\nchmod 755 \"$3/usr/lib/go-$version/bin/go\"\n"
	}
	script, err := os.ReadFile("../../../.ci/get-go")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, goStub, unpacked string
		packages               string
		lacks                  string // a program that is missing
		unpacks                string // the unpacked version, "" for none
		fails                  string // the expected message, "" for success
	}{
		{name: "a Go that fits", goStub: fits},
		{name: "none, and Debian has the version", unpacked: fits, packages: "golang-1.25-go golang-1.26-go golang-1.27-go", unpacks: "1.26"},
		{name: "an old one, and Debian has one that fetches it", goStub: older, unpacked: fits, packages: "golang-1.9-go golang-1.19-go golang-1.23-go", unpacks: "1.23"},
		{name: "Debian's is too old as well", goStub: older, unpacked: older, packages: "golang-1.19-go", unpacks: "1.19", fails: "needs Go 1.26.0"},
		{name: "Debian has none", goStub: older, fails: "invalid go version"},
		{name: "no Debian", lacks: "apt-get", fails: "without apt-get"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root, bin := t.TempDir(), t.TempDir()
			write := func(path, text string) {
				t.Helper()
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			write(root+"/.ci/get-go", string(script))
			write(root+"/go.mod", "module x\n\ngo 1.26.0\n")
			write(root+"/os-release", "ID=debian\nVERSION_CODENAME=trixie\nPRETTY_NAME='Debian 13'\n")
			for name, stub := range map[string]string{"go": test.goStub, "apt-cache": cache, "apt-get": get, "dpkg-deb": unpack(test.unpacked)} {
				if stub != "" && name != test.lacks {
					write(filepath.Join(bin, name), stub)
				}
			}
			for _, name := range []string{"sh", "sed", "rm", "mkdir", "chmod", "cat", "grep", "head", "sort", "cut", "ln", "mv", "touch", "dirname"} {
				path, err := exec.LookPath(name)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command("/bin/sh", root+"/.ci/get-go")
			cmd.Env = []string{"PATH=" + bin, "PACKAGES=" + test.packages, "OS_RELEASE=" + root + "/os-release"}
			out, err := cmd.CombinedOutput()
			if (err != nil) != (test.fails != "") || !strings.Contains(string(out), test.fails) {
				t.Errorf("%v, the message is %q, want %q", err, out, test.fails)
			}
			if test.goStub == fits && len(out) > 0 {
				t.Errorf("it prints %q", out)
			}
			link, _ := os.Readlink(root + "/.cache/go")
			if want := "go-root/usr/lib/go-" + test.unpacks; test.unpacks == "" && link != "" || test.unpacks != "" && link != want {
				t.Errorf(".cache/go is %q, want %q", link, want)
			}
			if left, _ := filepath.Glob(root + "/.cache/get-go*"); len(left) > 0 {
				t.Errorf("%s is left", left)
			}
		})
	}
}
