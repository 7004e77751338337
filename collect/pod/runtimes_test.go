package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
)

// listOf has the form of /proc/net/unix; a path with a leading "-" does not listen.
func listOf(paths ...string) string {
	var b strings.Builder
	b.WriteString("Num       RefCount Protocol Flags    Type St Inode Path\n")
	b.WriteString("0000000000000000: 00000003 00000000 00000000 0001 03  5042\n")
	for i, p := range paths {
		flags := acceptOn
		if rest, ok := strings.CutPrefix(p, "-"); ok {
			p, flags = rest, 0
		}
		fmt.Fprintf(&b, "0000000000000000: %08X %08X %08X %04X %02X %5d %s\n", 2, 0, flags, 1, 1, 42+i, p)
	}
	return b.String()
}

// machineOf makes a file tree with sockets, links of the form "PATH -> TARGET", and a
// list of listening sockets. It returns the tree's procfs.
func machineOf(t testing.TB, files, listening []string) (procRoot string) {
	t.Helper()
	procRoot = t.TempDir()
	root := procRoot + "/1/root"
	try := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	try(os.MkdirAll(root, 0o755))
	for _, f := range files {
		path, to, link := strings.Cut(f, " -> ")
		try(os.MkdirAll(filepath.Dir(root+path), 0o755))
		if link {
			try(os.Symlink(to, root+path))
		} else {
			try(unix.Mknod(root+path, unix.S_IFSOCK|0o600, 0))
		}
	}
	if listening != nil {
		try(os.MkdirAll(procRoot+"/1/net", 0o755))
		try(os.WriteFile(procRoot+"/1/net/unix", []byte(listOf(listening...)), 0o444))
	}
	return procRoot
}

const (
	crioSocket    = "/run/crio/crio.sock"
	dockerSocket  = "/run/docker.sock"
	dockerdSocket = "/run/cri-dockerd.sock"
	podmanSocket  = "/run/podman/podman.sock"
)

func TestRuntimes(t *testing.T) {
	docker, crio := Runtime{Docker, dockerSocket, ""}, Runtime{CRIO, crioSocket, ""}
	for _, test := range []struct {
		name             string
		files, listening []string
		want             []Runtime
	}{
		{"none", nil, []string{}, nil},
		{"only containerd", []string{DefaultSockets[0]}, []string{DefaultSockets[0]}, nil},
		{"CRI-O", []string{crioSocket}, []string{"/a b", crioSocket}, []Runtime{crio}},
		{"by the path before the link", []string{crioSocket}, []string{"/var" + crioSocket}, []Runtime{crio}},
		{"left behind", []string{crioSocket, dockerSocket}, []string{"/run/x"}, nil},
		{"the other end of a connection", []string{crioSocket}, []string{"-" + crioSocket}, nil},
		{"in another mount namespace", nil, []string{crioSocket, dockerSocket}, nil},
		{"a list that cannot be read", []string{crioSocket}, nil, []Runtime{crio}},
		{"Docker", []string{dockerSocket}, []string{dockerSocket}, []Runtime{docker}},
		{"Docker by a link", []string{"/run/d/docker.sock", dockerSocket + " -> /run/d/docker.sock"}, []string{"/run/d/docker.sock"}, []Runtime{docker}},
		{"Podman in Docker's place", []string{podmanSocket, dockerSocket + " -> " + podmanSocket}, []string{podmanSocket}, nil},
		{"Docker with its own containerd", []string{dockerSocket, dockerContainerd}, []string{dockerSocket, "/var" + dockerContainerd},
			[]Runtime{{Docker, dockerSocket, dockerContainerd}}},
		{"Docker, and a containerd of its own that was", []string{dockerSocket, dockerContainerd}, []string{dockerSocket}, []Runtime{docker}},
		{"cri-dockerd stands for its Docker", []string{dockerSocket, dockerdSocket, dockerContainerd}, []string{dockerSocket, dockerdSocket, dockerContainerd},
			[]Runtime{{CRIDockerd, dockerdSocket, dockerContainerd}}},
		{"two", []string{dockerSocket, crioSocket}, []string{dockerSocket, crioSocket}, []Runtime{crio, docker}},
	} {
		if d := cmp.Diff(test.want, Runtimes(machineOf(t, test.files, test.listening))); d != "" {
			t.Errorf("%s: %s", test.name, d)
		}
	}
}

// The kernel's own list shows which sockets have a listener.
func TestListensOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b.sock")
	listed := func() bool {
		b, err := os.ReadFile("/proc/self/net/unix")
		if err != nil {
			t.Fatal(err)
		}
		return listensOn(b, path)
	}
	if listed() {
		t.Error("nobody listens, and the list says so")
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if !listed() {
		t.Error("a socket that listens is not found")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, there := socketFile(path); !there || listed() {
		t.Errorf("after the end of the listener: file %v, listens %v", there, listed())
	}
}

func FuzzListensOn(f *testing.F) {
	f.Add([]byte(listOf(crioSocket, "-"+dockerSocket)), crioSocket)
	f.Add([]byte("a b c 10000 e f g /x"), "/x")
	f.Add([]byte("a b c 10000 e f"), "")
	f.Fuzz(func(t *testing.T, list []byte, path string) {
		if listensOn(list, path) && path != "" && !strings.Contains(string(list), path) {
			t.Errorf("%q is not in the list", path)
		}
	})
}

func TestUnnamedRuntimes(t *testing.T) {
	answers, silent := Status{Socket: DefaultSockets[0]}, Status{Err: errors.New("refused")}
	absent, own := Status{Err: fmt.Errorf("%w at any", errAbsent)}, Status{Socket: dockerContainerd}
	crio, docker := Runtime{CRIO, crioSocket, ""}, Runtime{Docker, dockerSocket, ""}
	with, dockerd := Runtime{Docker, dockerSocket, dockerContainerd}, Runtime{CRIDockerd, dockerdSocket, dockerContainerd}
	for _, test := range []struct {
		name    string
		r       Runtime
		st      Status
		why, do string // expected parts; "" means that nothing is logged
	}{
		{"CRI-O beside containerd", crio, answers, crioSocket, "crictl pods"},
		{"CRI-O alone", crio, absent, "names only containerd's pods", "lsns"},
		{"Docker through the machine's containerd", docker, answers, "", ""},
		{"Docker through its own containerd", with, own, "", ""},
		{"cri-dockerd through Docker's own containerd", dockerd, own, "", ""},
		{"Docker's own containerd beside another", with, answers, "behind " + DefaultSockets[0], `pods.sockets = ["` + dockerContainerd + `"]`},
		{"Docker without a containerd", docker, absent, "no socket of the containerd", "--containerd"},
		{"Docker whose containerd is silent", docker, silent, "", ""}, // another line, about containerd, gives the reason
		{"Docker's own containerd is silent", with, silent, dockerContainerd, "systemctl status docker"},
		{"cri-dockerd whose containerd is silent", dockerd, silent, "runs pods through Docker", "systemctl status docker"},
		{"before the first try", docker, Status{}, "", ""},
	} {
		why, do := test.r.Unnamed(test.st)
		if (why == "") != (test.why == "") || (do == "") != (test.do == "") || !strings.Contains(why, test.why) || !strings.Contains(do, test.do) {
			t.Errorf("%s: %q -> %q, want %q -> %q", test.name, why, do, test.why, test.do)
		}
	}
}

// Missing names of another runtime's containers are logged once, however long that
// lasts, and only on request. Nothing is logged without such a runtime.
func TestRuntimesAreLoggedOnce(t *testing.T) {
	for _, test := range []struct {
		name   string
		listen []string
		opt    Options
		want   int
	}{
		{"one", []string{crioSocket}, Options{Runtimes: true}, 1},
		{"two", []string{crioSocket, dockerSocket}, Options{Runtimes: true}, 2},
		{"none", nil, Options{Runtimes: true}, 0},
		{"a command", []string{crioSocket}, Options{}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			log := &logbook{}
			opt := test.opt
			opt.ProcRoot = machineOf(t, test.listen, slices.Clip(append([]string{"/run/x"}, test.listen...)))
			opt.Sockets = []string{filepath.Join(t.TempDir(), "c.sock")}
			opt.HostNetns = "/proc/self/ns/net"
			opt.Log = slog.New(slog.NewTextHandler(log, nil))
			every := usual
			every.runtimes = 50 * time.Millisecond
			ctx, cancel := context.WithCancel(context.Background())
			x := watch(ctx, opt, every)
			defer func() { cancel(); x.Wait() }()
			if test.want > 0 {
				testkit.Eventually(t, "the runtimes are logged", func() bool { return log.count("listens on") == test.want })
			}
			testkit.Within(3*time.Second, func() bool { return log.count("listens on") > test.want })
			if n := log.count("listens on"); n != test.want || n != log.count("hint=") {
				t.Errorf("%d lines, want %d: %q", n, test.want, log.lines())
			}
		})
	}
}

// A silent containerd counts as missing. An absent one counts as missing only if it was
// expected.
func TestMissing(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	ctx, cancel := context.WithCancel(context.Background())
	x := watch(ctx, Options{Sockets: []string{socket}, HostNetns: "/proc/self/ns/net"}, usual)
	defer func() { cancel(); x.Wait() }()
	short, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if err := x.Await(short); !errors.Is(err, errAbsent) {
		t.Errorf("waiting for what is not there ends with %v", err)
	}
	if err := x.Missing(false); err != nil {
		t.Errorf("without a socket: %v", err)
	}
	if err := x.Missing(true); !errors.Is(err, errAbsent) {
		t.Errorf("without a socket, but expected: %v", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the listener never accepts
	testkit.Eventually(t, "its silence is the reason", func() bool {
		err := x.Missing(false)
		return err != nil && strings.Contains(err.Error(), "no answer in time")
	})
}
