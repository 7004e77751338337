package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// scratch is the folder for the package's tests, which Main creates and removes.
var scratch string

// Main runs the tests of a package that starts nodeskoop. The program and the daemons'
// state are in a folder that it removes afterwards. Call it from TestMain, and pass the
// result to os.Exit.
func Main(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "nodeskoop-test-"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(scratch)
	// Let any user run the program.
	if err := os.Chmod(scratch, 0o755); err != nil {
		panic(err)
	}
	state := filepath.Join(scratch, "state")
	if err := errors.Join(os.Mkdir(state, 0o755), os.Setenv("STATE_DIRECTORY", state)); err != nil {
		panic(err)
	}
	return m.Run()
}

// Build is Nodeskoop without a test.
var Build = sync.OnceValues(func() (path string, err error) {
	if scratch == "" {
		return "", errors.New("TestMain does not call testkit.Main")
	}
	path = filepath.Join(scratch, "nodeskoop")
	out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", path, "nodeskoop/cmd/nodeskoop").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build nodeskoop: %w\n%s", err, out)
	}
	return path, nil
})

// Nodeskoop returns the path of the program, which is built once. The package's TestMain
// must call Main.
func Nodeskoop(t testing.TB) string {
	t.Helper()
	path, err := Build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
