package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	root, archive, err := o.begin()
	if err != nil {
		return err
	}
	k, err := fetchKernel(o.cache, archive, o.arch, cmp.Or(o.kernels, special), o.refresh)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "nodeskoop-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := &machine{arch: o.arch, accel: o.accel, icount: o.icount, kernel: k, variant: plain, timeout: o.timeout, memory: memory, system: true}
	initrd, err := diskInitrd(ctx, root, dir, m)
	if err != nil {
		return err
	}
	if err := makeDevices(dir); err != nil {
		return err
	}
	args := append(m.qemu(dir, initrd, results),
		"-drive", fmt.Sprintf("file=%s,if=none,id=%s,format=raw,cache=unsafe", disk, rootSerial),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%[1]s", rootSerial))
	start := time.Now()
	if err := m.boot(ctx, args, results+".console", func(int) {}); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%s ran for %.0f s (%.0f s of CPU)\n", k.Release, time.Since(start).Seconds(), m.cpu.Seconds())
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
