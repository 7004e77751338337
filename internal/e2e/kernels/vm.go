package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// modules are loaded before the tests, if the kernel has them. On a real machine
// `ip`, `tc` and `nft` load them on demand.
var modules = []string{
	"crc32c_generic", "ext4", // built into the cloud flavour
	"virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "net_failover", "failover",
	"veth", "dummy", "macvlan", "ipvlan", "8021q", "bonding", "bridge", "vxlan", "tun", "ifb", "loop", "null_blk", "mq-deadline",
	"sch_ingress", "sch_tbf", "sch_netem", "sch_htb", "sch_fq_codel", "sch_fq", "sch_prio", "sch_mqprio", "sch_multiq", "sch_sfq",
	"cls_bpf", "cls_u32", "cls_matchall", "act_bpf", "act_gact", "act_mirred", "act_police",
	"nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nf_tables", "nft_ct", "nft_counter", "nft_compat", "nft_chain_nat", "nft_nat", "nft_masq",
	"nft_reject", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_meta_bridge", "nft_limit", "nft_numgen", "nft_log", "nft_queue", "nft_objref", "nft_quota", "nft_fib", "nft_hash",
	"nfnetlink_queue", "nfnetlink_log", "xt_NFQUEUE", "xt_tcpudp", "xt_conntrack", "xt_nat", "xt_MASQUERADE",
	"inet_diag", "tcp_diag", "udp_diag", "unix_diag", "raw_diag", "af_packet_diag",
	"ip_vs", "ip_vs_rr", "vxlan", "nft_objref",
	"sctp", "vsock", "vsock_loopback", "ip_gre", "ip6_gre", "ipip", "ip6_tunnel", "sit", "wireguard", "geneve",
}

// disks are the VM's disks: two slow ones, and one for files.
var disks = []struct {
	serial string
	size   int64
	iops   int // I/O operations per second; 0 is unlimited
}{{"iops30", 8 << 20, 30}, {"iops5", 8 << 20, 5}, {"files", 128 << 20, 0}}

// variants of a boot, which tests read from NODESKOOP_TEST_VM.
const (
	plain    = "1"
	lockdown = "lockdown"

	allVariants = plain + "," + lockdown
)

// machine is one VM to run.
type machine struct {
	arch    string
	accel   string
	icount  string
	kernel  *kernel
	variant string
	tests   []test
	timeout time.Duration
	logs    string // path of the logs, without extension
	turn    int    // number of the rung to use in tests that take turns
	memory  int    // MiB; 0 is what the tests need
	system  bool   // the VM boots a whole system from a disk
	part    int    // 1 and 2: a part of the kernel's tests; 0: all

	cpu   time.Duration // CPU time that the VM used
	costs costs         // CPU time of each test
}

// test is one test program and how to run it.
type test struct {
	Name    string
	Dir     string
	Args    []string
	Timeout time.Duration
}

func (m *machine) name() string {
	n := m.kernel.series()
	if m.variant != plain {
		n += " " + m.variant
	}
	return n
}

// prepare writes the kernel's initramfs in three parts, the last of which holds the
// tests.
func (m *machine) prepare(dir, userland string, tests tree) (string, error) {
	files, mods, err := m.kernel.modules(modules, m.variant == lockdown)
	if err != nil {
		return "", err
	}
	plan, err := json.MarshalIndent(struct {
		Modules []string
		Env     []string
		Tests   []test
	}{
		Modules: files,
		Env: []string{
			"NODESKOOP_TEST_STRICT=1", "NODESKOOP_TEST_VM=" + m.variant,
			"NODESKOOP_TEST_BINARY=/usr/bin/nodeskoop",
			"GOGC=400", // the VM has more memory than CPU
			fmt.Sprintf("NODESKOOP_TEST_TURN=%d", m.turn),
		},
		Tests: m.tests,
	}, "", "  ")
	if err != nil {
		return "", err
	}
	mods.file("plan.json", 0o644, plan)

	initrd, err := os.Create(filepath.Join(dir, "initrd"))
	if err != nil {
		return "", err
	}
	defer initrd.Close()
	base, err := os.Open(userland)
	if err != nil {
		return "", err
	}
	defer base.Close()
	if _, err := io.Copy(initrd, base); err != nil {
		return "", err
	}
	if err := mods.write(initrd); err != nil {
		return "", err
	}
	if err := tests.write(initrd); err != nil {
		return "", err
	}
	return initrd.Name(), initrd.Close()
}

// qemu returns the command line. Two network cards share a hub, so that packets
// pass a real driver without leaving the VM. A third has several queues, for which
// it needs a tap device, in the network namespace in which QEMU runs. makeDevices
// must have run in dir.
func (m *machine) qemu(dir, initrd, results string) []string {
	// Further features make an emulated CPU slow: more registers to save, five
	// levels of page tables.
	args := []string{"qemu-system-x86_64", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdtscp,+rdrand,+fsgsbase"}
	console := "ttyS0"
	if m.arch == "arm64" {
		args = []string{"qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57"}
		console = "ttyAMA0"
	}
	// The VM is not exposed to attacks, so mitigations are off. Nothing here needs the
	// cryptography whose self-tests take a fifth of the boot.
	command := "console=" + console + " loglevel=4 panic=-1 mitigations=off cryptomgr.notests rcupdate.rcu_expedited=1" +
		" init_on_alloc=0 init_on_free=0 hardened_usercopy=off randomize_kstack_offset=off transparent_hugepage=always apparmor=0 nowatchdog initcall_blacklist=jent_mod_init,crypto_kdf108_init,init_encrypted 8250.nr_uarts=1"
	if !m.system {
		// QEMU translates code once for each virtual address, so a program at other
		// addresses is translated again each time that it runs: a fifth of all CPU time.
		command += " norandmaps nokaslr"
	}
	if m.variant == lockdown {
		command += " lockdown=confidentiality"
	}
	// With an instruction-counting clock, a VM runs evenly however busy this
	// machine is, so measurements in the tests do not depend on its load. Idle time
	// passes in real time, because the disks' delays are in real time.
	if m.icount != "" && strings.HasPrefix(m.accel, "tcg") {
		args = append(args, "-icount", m.icount)
	}
	args = append(args,
		// One CPU: with more, emulation sometimes conflicts with the kernel's
		// patching of its own code.
		"-accel", m.accel, "-smp", "1", "-m", strconv.Itoa(cmp.Or(m.memory, 1536)), "-nographic", "-no-reboot", "-nic", "none",
		"-kernel", m.kernel.image(), "-initrd", initrd, "-append", command,
		"-device", "virtio-serial-pci",
		"-chardev", "file,id=results,path="+results, "-device", "virtserialport,chardev=results,name=results",
		"-netdev", "hubport,id=h0,hubid=0", "-device", "virtio-net-pci,netdev=h0,romfile=,mac=52:54:00:00:00:01",
		"-netdev", "hubport,id=h1,hubid=0", "-device", "virtio-net-pci,netdev=h1,romfile=,mac=52:54:00:00:00:02",
		"-netdev", "tap,id=q0,ifname=q0,queues=2,downscript=no,script="+filepath.Join(dir, tapScript), "-device", "virtio-net-pci,netdev=q0,romfile=,mq=on,vectors=6,mac=52:54:00:00:00:03",
	)
	for _, d := range disks {
		args = append(args,
			"-drive", fmt.Sprintf("file=%s,if=none,id=%s,format=raw,throttling.iops-total=%d", filepath.Join(dir, d.serial), d.serial, d.iops),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", d.serial, d.serial))
	}
	return args
}

// run boots the VM and returns the tests' output. An error is about the VM, not
// about the tests.
func (m *machine) run(ctx context.Context, userland string, tests tree, keep bool) (string, error) {
	if ctx.Err() != nil {
		return "", errors.New("stopped")
	}
	dir, err := os.MkdirTemp("", "nodeskoop-vm-")
	if err != nil {
		return "", err
	}
	if !keep {
		defer os.RemoveAll(dir)
	}
	initrd, err := m.prepare(dir, userland, tests)
	if err != nil {
		return "", err
	}
	if err := makeDevices(dir); err != nil {
		return "", err
	}
	results := m.logs + ".log"
	os.Remove(results)
	args := m.qemu(dir, initrd, results)
	if keep {
		fmt.Fprintf(os.Stderr, "%s: unshare --net %s\n", m.name(), strings.Join(quoted(args), " "))
	}
	if slices.Contains(inner, m.kernel.series()) { // the others take longer
		args = append([]string{"nice", "-n", "5"}, args...)
	}
	stop, measured := make(chan struct{}), make(chan costs, 1)
	console := m.logs + ".console"
	err = m.boot(ctx, args, console, func(pid int) { go func() { measured <- measure(pid, results, stop) }() })
	close(stop)
	if m.cpu > 0 {
		m.costs = <-measured
	}
	out, failed := os.ReadFile(results)
	if failed != nil && !errors.Is(failed, os.ErrNotExist) {
		return "", errors.Join(err, failed)
	}
	text := string(bytes.ToValidUTF8(bytes.ReplaceAll(out, []byte("\r\n"), []byte("\n")), []byte("?")))
	if err == nil && !strings.Contains(text, "\n@done ") {
		err = fmt.Errorf("it ended before its tests did; its console says: %s", lastLines(console, 40))
	}
	return text, err
}

// boot runs QEMU until the VM turns itself off, and notes the CPU time. began gets QEMU's
// PID. The console goes to a file, with whose last lines an error ends.
func (m *machine) boot(ctx context.Context, args []string, console string, began func(pid int)) error {
	m.cpu, m.costs = 0, costs{}
	f, err := os.Create(console)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	// Use a separate network namespace, which ends with the process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err = runChild(cmd, began)
	if cmd.ProcessState != nil {
		m.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return errors.New("stopped")
	case ctx.Err() != nil:
		return fmt.Errorf("not done after %v; its console says: %s", m.timeout, lastLines(console, 10))
	case err != nil:
		return fmt.Errorf("%s: %w: %s", args[0], err, lastLines(console, 20))
	}
	return nil
}

// quoted quotes words of a command line for a shell.
func quoted(args []string) []string {
	var words []string
	for _, a := range args {
		if strings.ContainsAny(a, " ,;&()") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return words
}

// makeDevices makes the files of the VM's devices.
func makeDevices(dir string) error { return errors.Join(makeDisks(dir), makeTapScript(dir)) }

// makeDisks makes the files of the VM's disks.
func makeDisks(dir string) error {
	for _, d := range disks {
		f, err := os.Create(filepath.Join(dir, d.serial))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(d.size), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func lastLines(file string, n int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n  ")
}
