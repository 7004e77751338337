package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapScript is the file that QEMU runs with the name of the VM's tap device.
const tapScript = "tap-up"

// makeTapScript writes tapScript, which calls this program with -sink.
func makeTapScript(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	script := "#!/bin/sh\nexec '" + strings.ReplaceAll(self, "'", `'\''`) + "' -sink \"$1\"\n"
	return os.WriteFile(filepath.Join(dir, tapScript), []byte(script), 0o700)
}

// sink sets up a tap device that consumes what is written to it. Otherwise this machine's
// kernel would lose the frames, and a test that runs beside the VM and counts all losses of
// the machine would count them.
func sink(device string) error {
	// Without IPv6, the device itself sends nothing.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+device+"/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", device, err)
	}
	// TC_ACT_STOLEN frees a packet without calling it lost.
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "sink", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, int32(netlink.TC_ACT_STOLEN)), asm.Return()},
	})
	if errors.Is(err, unix.EPERM) {
		return nil // a user without this right runs no tests that count losses
	}
	if err != nil {
		return fmt.Errorf("load a filter for %s: %w", device, err)
	}
	defer program.Close()
	index := link.Attrs().Index
	if err := netlink.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}); err != nil {
		return fmt.Errorf("add a qdisc to %s: %w", device, err)
	}
	if err := netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          program.FD(), Name: "sink", DirectAction: true,
	}); err != nil {
		return fmt.Errorf("add a filter to %s: %w", device, err)
	}
	return nil
}
