package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func TestReasons(t *testing.T) {
	r := &Reasons{
		drop:   map[uint32]string{12: "NETFILTER_DROP", 2<<16 | 1: "OVS_DROP_LAST_ACTION"},
		subsys: map[uint32]string{0: "CORE", 2: "OPENVSWITCH"},
		reset:  map[uint32]string{8: "TCP_ABORT_ON_DATA"},
	}
	for n, want := range map[uint32]string{
		12: "NETFILTER_DROP", 999: "REASON_999", 2<<16 | 1: "OVS_DROP_LAST_ACTION", 2<<16 | 7: "OPENVSWITCH_7",
		9 << 16: "REASON_589824", ReasonNone: "NOT_SPECIFIED", ReasonOverflow: "OVERFLOW",
	} {
		if got := r.Drop(n); got != want {
			t.Errorf("drop %d: %s, want %s", n, got, want)
		}
	}
	for n, want := range map[uint32]string{8: "TCP_ABORT_ON_DATA", 77: "REASON_77", ReasonNone: ""} {
		if got := r.Reset(n); got != want {
			t.Errorf("reset %d: %s, want %s", n, got, want)
		}
	}
}

// TestKernelReasons reads the reasons of the running kernel, whose numbers differ
// between kernels.
func TestKernelReasons(t *testing.T) {
	types, err := newKernelTypes()
	if err != nil {
		t.Skipf("this kernel: no type information: %v", err)
	}
	r := readReasons(types)
	if _, ok := types.tracepoint("no_such_tracepoint"); ok {
		t.Error("found a tracepoint that is not there")
	}
	params, ok := types.tracepoint("kfree_skb")
	if !ok {
		t.Fatal("no tracepoint kfree_skb")
	}
	if len(params) < 3 {
		t.Skip("this kernel: it gives no reasons")
	}
	n, ok := r.dropNumber("NETFILTER_DROP")
	if !ok || r.Drop(n) != "NETFILTER_DROP" {
		t.Errorf("%d %v", n, r.drop)
	}
	for _, name := range r.drop {
		if strings.HasPrefix(name, "SKB_DROP_REASON_") || name == "MAX" || name == "SUBSYS_MASK" {
			t.Errorf("a reason called %s", name)
		}
	}
}

func TestExplain(t *testing.T) {
	const all = 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | 1<<unix.CAP_NET_ADMIN
	for _, c := range []struct {
		effective uint64
		missing   string
	}{
		{0, "CAP_BPF CAP_PERFMON CAP_NET_ADMIN"},
		{all, ""},
		{all &^ (1 << unix.CAP_PERFMON), "CAP_PERFMON"},
		{1 << unix.CAP_SYS_ADMIN, ""},
	} {
		if got := strings.Join(missingFrom(c.effective), " "); got != c.missing {
			t.Errorf("with %#x: %q missing, want %q", c.effective, got, c.missing)
		}
	}
	misleading := fmt.Errorf("load program: %w (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", unix.EPERM)
	if got := explain(misleading).Error(); strings.Contains(got, "MEMLOCK") || !strings.Contains(got, "not permitted") {
		t.Error(got)
	}
	verifier := &ebpf.VerifierError{Cause: unix.EINVAL, Log: []string{"0: R1=ctx", "R2 invalid mem access", "processed 5 insns (limit 1000000)"}}
	if got := explain(fmt.Errorf("load: %w", verifier)).Error(); !strings.Contains(got, "R2 invalid mem access") || strings.Contains(got, "processed") {
		t.Error(got)
	}
	for _, words := range []string{"unknown func bpf_probe_read#4", "program of this type cannot use helper bpf_probe_read#4"} {
		locked := &ebpf.VerifierError{Cause: errors.New("invalid argument"), Log: []string{"0: (85) call bpf_probe_read#4", words, "processed 30 insns"}}
		if got := explain(fmt.Errorf("load: %w", locked)).Error(); os.Geteuid() == 0 && !strings.Contains(got, "lockdown=confidentiality") || !strings.Contains(got, words) {
			t.Error(got)
		}
	}
	if got := explain(fmt.Errorf("x: %w", ebpf.ErrNotSupported)).Error(); !strings.Contains(got, "does not support") {
		t.Error(got)
	}
	if explain(nil) != nil {
		t.Error("an error out of nothing")
	}
	other := errors.New("other")
	if explain(other) != other {
		t.Error("an error lost")
	}
}

// TestUnsupported: which errors mean that the machine cannot run a probe, and which
// are failures. The distinction never depends on texts.
func TestUnsupported(t *testing.T) {
	rejects := func(cause error, words ...string) error {
		return fmt.Errorf("load program: %w", &ebpf.VerifierError{Cause: cause, Log: words})
	}
	attach := func(err error) error {
		return fmt.Errorf("attach to tcp_rcv: %w", explain(fmt.Errorf("link: %w", err)))
	}
	for _, c := range []struct {
		what string
		err  error
		want bool
	}{
		{"nothing", nil, false},
		{"no type information", fmt.Errorf("load probe flow: %w", errNoBTF), true},
		{"no cgroup2", attach(errNoCgroup2), true},
		{"no such function", attach(os.ErrNotExist), true},
		{"no such tracepoint", attach(unix.ENOENT), true},
		{"no fentry", attach(ebpf.ErrNotSupported), true},
		{"no kind of link", attach(link.ErrNotSupported), true},
		{"no trampoline on this architecture", attach(errNotSupp), true},
		{"no such command", attach(unix.EINVAL), true},
		{"no such system call", attach(unix.ENOSYS), true},
		{"a function that may not be probed", attach(unix.EADDRNOTAVAIL), true},
		{"no kprobes", attach(errors.New("neither debugfs nor tracefs are mounted")), true},
		{"not permitted", attach(unix.EPERM), true},
		{"a security module", attach(unix.EACCES), true},
		{"no such helper", explain(rejects(unix.EINVAL, "unknown func bpf_loop#181")), true},
		{"lockdown", explain(rejects(unix.EINVAL, "program of this type cannot use helper bpf_probe_read_kernel#113")), true},
		{"a verifier that does not follow", explain(rejects(unix.EACCES, "R2 invalid mem access 'inv'")), true},
		{"a verifier that gives up", explain(rejects(unix.E2BIG, "BPF program is too large. Processed 1000001 insn")), true},
		{"all hooks lacking", fmt.Errorf("x: %w", &UnsupportedError{Probe: "flow"}), true},

		{"no memory", attach(unix.ENOMEM), false},
		{"no memory in the verifier", explain(rejects(unix.ENOMEM)), false},
		{"no descriptor", attach(unix.EMFILE), false},
		{"no descriptor on the machine", attach(unix.ENFILE), false},
		{"no room", attach(unix.ENOSPC), false},
		{"somebody else is there", attach(unix.EBUSY), false},
		{"interrupted", explain(rejects(unix.EAGAIN)), false},
		{"one hook lacking, another short of memory", errors.Join(attach(os.ErrNotExist), attach(unix.ENOMEM)), false},
		{"a namespace that is not there", fmt.Errorf("open the network namespace of the devices: %w", unix.ENOENT), false},
		{"closed", fmt.Errorf("load probe flow: %w", errClosed), false},
		{"anything else", errors.New("a panic"), false},
	} {
		if got := Unsupported(c.err); got != c.want {
			t.Errorf("%s: unsupported %v, want %v (%v)", c.what, got, c.want, c.err)
		}
	}
}

// TestReason: the readable line excludes the verifier's log, the details include
// it.
func TestReason(t *testing.T) {
	const words = "R2 invalid mem access 'inv'"
	rejected := explain(&ebpf.VerifierError{Cause: unix.EACCES, Log: []string{words}})
	missing := explain(os.ErrNotExist)
	err := &UnsupportedError{Probe: "kernellatency", Note: "it takes fentry", Hooks: []HookState{
		{Name: "packets in", Kind: Fentry},
		{Name: "packets out", Refused: []Refusal{
			{Kind: Fentry, Reason: Reason(rejected), Answer: rejected.Error()},
			{Kind: Kprobe, Reason: Reason(missing), Answer: missing.Error()},
			{Kind: RawTracepoint, Reason: Reason(missing), Answer: missing.Error()},
		}},
	}}
	if got, want := Reason(fmt.Errorf("load: %w", err)), "no way to watch packets out: the kernel's verifier rejects it; this kernel has no such function or tracepoint (it takes fentry)"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := err.Detail(), "probe kernellatency cannot work here: no way to watch packets out: fentry: the kernel's verifier rejects it: permission denied: "+words+
		"; kprobe, raw_tp: this kernel has no such function or tracepoint (it takes fentry)"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := Reason(fmt.Errorf("load: %w", rejected)); strings.Contains(got, words) || !strings.Contains(rejected.Error(), words) {
		t.Error(got)
	}
}

// dropNumber returns the number of a drop reason.
func (r *Reasons) dropNumber(name string) (uint32, bool) {
	for n, s := range r.drop {
		if s == name {
			return n, true
		}
	}
	return 0, false
}
