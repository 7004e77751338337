// Package need holds what a test says when it cannot run everywhere. A test
// that lacks something is skipped with the reason named; where
// NODESKOOP_TEST_STRICT is set (as `make test` does, which installs
// everything first), lacking what the machine could have is a failure. Where
// NODESKOOP_TEST_UNIT is set (as `make test-unit` does), root is as anybody.
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

// ProgramFrom is Program for those that another command than make deps installs.
func ProgramFrom(t testing.TB, installer string, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			lack(t, "needs the program "+n+": "+installer+" installs it")
		}
	}
}

// Target skips a test that a target of the Makefile of its own runs, since it
// takes long or writes into the tree.
func Target(t testing.TB, target string, asked bool) {
	t.Helper()
	if !asked {
		t.Skip("runs by make " + target)
	}
}

// Kernel skips the test if this machine's kernel cannot do it: the one thing
// that no set-up can change.
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

// InVM reports whether the test runs in a virtual machine of `make
// test-kernels`, whose devices it may take.
func InVM() bool { return os.Getenv("NODESKOOP_TEST_VM") != "" }

// VM skips a test that needs what only those virtual machines are sure to
// have: a device, or a module. In one of them a lack is a failure, so that no
// test is skipped everywhere.
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
