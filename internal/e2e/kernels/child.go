package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// untilTold returns a context that ends when the runner gets a signal, or when its
// parent process has exited: make and sudo do not always pass the signal on. A second
// signal ends the runner at once.
func untilTold() (context.Context, error) {
	ctx, cancel := context.WithCancel(context.Background())
	told := make(chan os.Signal, 2) // room for both
	signal.Notify(told, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-told
		cancel()
		<-told
		os.Exit(1)
	}()
	parent := os.Getppid()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return ctx, err
	}
	if os.Getppid() != parent {
		return ctx, errors.New("what started this has ended")
	}
	return ctx, nil
}

// runChild runs a program that ends with the command's context, and with this process,
// however this process ends. The program is outside this process's group, so that
// signals to the group do not look like a failure of the program. started is called
// with its PID.
func runChild(cmd *exec.Cmd, started func(pid int)) error {
	// The kernel sends Pdeathsig when the parent's thread ends, so the thread must
	// stay alive.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return err
	}
	started(cmd.Process.Pid)
	return cmd.Wait()
}
