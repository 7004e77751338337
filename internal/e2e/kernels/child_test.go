package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
)

// asRunner makes the test program a runner of one program that ignores signals.
const asRunner = "NODESKOOP_TEST_RUNNER"

func TestMain(m *testing.M) {
	switch os.Getenv(asRunner) {
	case "":
		os.Exit(m.Run())
	default:
		ctx, err := untilTold()
		if err != nil {
			panic(err)
		}
		// The program ignores all signals that can be ignored.
		cmd := exec.CommandContext(ctx, "sh", "-c", `trap "" INT TERM HUP; echo $$; exec sleep 1000`)
		cmd.Stdout = os.Stdout
		_ = runChild(cmd, func(int) {})
		if os.Getenv(lingers) != "" {
			time.Sleep(time.Hour) // long enough to write an archive
		}
		os.Exit(1)
	}
}

// lingers delays the runner's end after its child has ended.
const lingers = "NODESKOOP_TEST_RUNNER_LINGERS"

// running reports whether a process exists and is not a zombie.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// TestNoChildStays: whatever ends the runner, its VMs end with it.
func TestNoChildStays(t *testing.T) {
	for _, c := range []struct {
		name    string
		signals []syscall.Signal // signals to send, one after another
		parent  bool             // send them to the runner's parent
		env     string
	}{
		{"Ctrl-C", []syscall.Signal{syscall.SIGINT}, false, ""},
		{"terminated", []syscall.Signal{syscall.SIGTERM}, false, ""},
		{"terminated twice", []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM}, false, lingers + "=1"},
		{"hung up, then killed", []syscall.Signal{syscall.SIGHUP, syscall.SIGKILL}, false, lingers + "=1"},
		{"killed", []syscall.Signal{syscall.SIGKILL}, false, ""},
		{"make is killed", []syscall.Signal{syscall.SIGKILL}, true, ""},
		{"make is terminated", []syscall.Signal{syscall.SIGTERM}, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			// The shell stands for make. The exit keeps it from being replaced by
			// the runner.
			cmd := exec.Command("sh", "-c", `"$0"; exit 1`, self)
			cmd.Env = append(os.Environ(), asRunner+"=1", c.env)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			p := testkit.Start(t, cmd)
			line, err := bufio.NewReader(out).ReadString('\n')
			child, err2 := strconv.Atoi(strings.TrimSpace(line))
			if err != nil || err2 != nil {
				t.Fatalf("the runner's child said %q: %v, %v\n%s", line, err, err2, p.Log)
			}
			runner := parentOf(t, child)
			for _, pid := range []int{runner, child} {
				t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
			}
			for i, s := range c.signals {
				if i > 0 {
					testkit.Eventually(t, "the first signal ended the child", func() bool { return !running(child) })
				}
				to := runner
				if c.parent {
					to = p.PID()
				}
				if err := syscall.Kill(to, s); err != nil {
					t.Fatal(err)
				}
			}
			testkit.Eventually(t, "the child has ended", func() bool { return !running(child) })
			testkit.Eventually(t, "the runner has ended", func() bool { return !running(runner) })
		})
	}
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var state string
	var parent int
	if _, err := fmt.Sscan(string(b)[strings.LastIndexByte(string(b), ')')+1:], &state, &parent); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	return parent
}
