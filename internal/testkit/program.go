package testkit

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// scratch is a folder of the package's tests, which Main makes and removes.
var scratch string

// Main runs the tests of a package that starts nodeskoop: what a daemon keeps is
// kept in a folder that is gone afterwards, and so is the program. It is for
// TestMain, which hands the result to os.Exit.
func Main(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "nodeskoop-test-"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(scratch)
	state := filepath.Join(scratch, "state")
	if err := errors.Join(os.Mkdir(state, 0o755), os.Setenv("STATE_DIRECTORY", state)); err != nil {
		panic(err)
	}
	return m.Run()
}

var build = sync.OnceValues(func() (out []byte, err error) {
	return exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program(), "nodeskoop/cmd/nodeskoop").CombinedOutput()
})

func program() string { return filepath.Join(scratch, "nodeskoop") }

// Nodeskoop is the path of the program, which is built once. The package's
// TestMain has to call Main.
func Nodeskoop(t testing.TB) string {
	t.Helper()
	if scratch == "" {
		t.Fatal("TestMain does not call testkit.Main")
	}
	if out, err := build(); err != nil {
		t.Fatalf("build nodeskoop: %v\n%s", err, out)
	}
	return program()
}
