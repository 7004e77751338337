package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// systemModules are further modules that a whole system uses.
var systemModules = []string{"overlay", "autofs4", "fuse", "br_netfilter", "nft_fib_inet", "xt_comment", "xt_mark", "xt_addrtype", "xt_multiport", "xt_statistic", "ip_set", "efi_pstore"}

// rootSerial is the serial number of the disk that is the VM's root.
const rootSerial = "root"

// bootDisk boots one kernel with a disk image as its root, whose own process 1 takes over
// once the modules are loaded, and waits until the VM turns itself off. What the system
// writes to the virtio port "results" is in the file named so.
func bootDisk(ctx context.Context, o *options, disk, results string, memory int) error {
	if o.kernels == "" {
		o.kernels = special
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	if o.cache, err = cacheFolder(o.cache); err != nil {
		return err
	}
	archive := sync.OnceValues(func() (*apt, error) { return newApt(filepath.Join(o.cache, o.arch, "apt"), o.arch) })
	k, err := fetchKernel(o.cache, archive, o.arch, o.kernels, o.refresh)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "nodeskoop-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := &machine{arch: o.arch, accel: o.accel, icount: o.icount, kernel: k, variant: plain}
	initrd, err := diskInitrd(ctx, root, dir, m)
	if err != nil {
		return err
	}
	for _, d := range disks {
		if err := sparse(filepath.Join(dir, d.serial), d.size); err != nil {
			return err
		}
	}
	args := m.qemu(dir, initrd, results)
	args[slices.Index(args, "-m")+1] = strconv.Itoa(memory)
	args = append(args,
		"-drive", fmt.Sprintf("file=%s,if=none,id=%s,format=raw,cache=unsafe", disk, rootSerial),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%[1]s", rootSerial))
	console, err := os.Create(results + ".console")
	if err != nil {
		return err
	}
	defer console.Close()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	start := time.Now()
	ended := runChild(cmd, func(int) {})
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return errors.New("stopped")
	case ctx.Err() != nil:
		return fmt.Errorf("not done after %v; its console says: %s", o.timeout, lastLines(console.Name(), 20))
	case ended != nil:
		return fmt.Errorf("%s: %w: %s", args[0], ended, lastLines(console.Name(), 20))
	}
	fmt.Fprintf(os.Stderr, "%s ran for %.0f s (%.0f s of CPU)\n", k.Release, time.Since(start).Seconds(), (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds())
	return nil
}

// diskInitrd writes an initramfs with the first process, the modules and the plan.
func diskInitrd(ctx context.Context, root, dir string, m *machine) (string, error) {
	files, t, err := m.kernel.modules(append(slices.Clone(modules), systemModules...), false)
	if err != nil {
		return "", err
	}
	plan, err := json.Marshal(struct {
		Modules []string
		Root    string
	}{files, rootSerial})
	if err != nil {
		return "", err
	}
	t.file("plan.json", 0o644, plan)
	first := filepath.Join(dir, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", first, "./internal/e2e/kernels/init")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+m.arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the first process: %w: %s", err, out)
	}
	if err := t.add("init", first, 0o755); err != nil {
		return "", err
	}
	f, err := os.Create(filepath.Join(dir, "initrd"))
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(t.write(f), f.Close())
}
