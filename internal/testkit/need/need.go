// Package need skips tests that cannot run everywhere, with the reason. If
// NODESKOOP_TEST_STRICT is set, as in `make test`, which installs everything first, a lack
// that the machine could remedy fails the test instead. If NODESKOOP_TEST_UNIT is set, as
// in `make test-unit`, root counts as an ordinary user.
package need

import (
	"os"
	"os/exec"
	"testing"
)

func strict() bool { return os.Getenv("NODESKOOP_TEST_STRICT") != "" }

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("NODESKOOP_TEST_UNIT") != "" {
		lack(t, "needs root: run make test with sudo")
	}
}

// Program skips the test unless all programs are in $PATH.
func Program(t testing.TB, names ...string) {
	t.Helper()
	ProgramFrom(t, "make deps", names...)
}

// ProgramFrom is Program for programs that a command other than make deps installs.
func ProgramFrom(t testing.TB, installer string, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			lack(t, "needs the program "+n+": "+installer+" installs it")
		}
	}
}

// Target skips a test that takes long or writes into the source tree, unless asked. A
// target of the Makefile runs it.
func Target(t testing.TB, target string, asked bool) {
	t.Helper()
	if !asked {
		t.Skip("runs by make " + target)
	}
}

// Kernel skips the test if ok is false: this machine's kernel lacks the feature, which no
// installation can change.
func Kernel(t testing.TB, ok bool, reason string) {
	t.Helper()
	if !ok {
		t.Skip("this kernel: " + reason)
	}
}

// Short skips a long test under go test -short.
func Short(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("long test, left out by -short")
	}
}

// InVM reports whether the test runs in a virtual machine of `make test-kernels`, whose
// devices it may use.
func InVM() bool { return os.Getenv("NODESKOOP_TEST_VM") != "" }

// VM skips a test if ok is false: it needs a device or module that only those virtual
// machines are sure to have. In such a machine it fails the test instead, so that the test
// runs somewhere.
func VM(t testing.TB, ok bool, reason string) {
	t.Helper()
	switch {
	case ok:
	case InVM():
		t.Fatal("this VM should have it: " + reason)
	default:
		t.Skip("only in a VM: " + reason)
	}
}

func lack(t testing.TB, reason string) {
	t.Helper()
	if strict() {
		t.Fatal(reason)
	}
	t.Skip(reason)
}
