package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// refusal is the kernel's answer to a load or an attachment, with advice for the
// reader.
type refusal struct {
	text   string
	answer string // the verifier's own message, for developers
	cause  error
}

func (e *refusal) Error() string {
	if e.answer == "" {
		return e.text
	}
	return e.text + ": " + e.answer
}

func (e *refusal) Unwrap() error { return e.cause }

// explain turns an error of a load or an attachment into a refusal if its cause is
// known. For any EPERM the library advises to raise the memory limit, which is
// seldom the cause.
func explain(err error) error {
	if err == nil {
		return nil
	}
	refuse := func(text, answer string) error { return &refusal{text, answer, err} }
	var verifier *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &verifier):
		if missing := missingCapabilities(); len(missing) > 0 {
			return refuse("not permitted: the process lacks "+strings.Join(missing, " and "), "")
		}
		return refuse("not permitted, although the process has the capabilities: the kernel forbids this (lockdown, a security module, or a system call filter)", "")
	case errors.As(err, &verifier) && noHelper(lastWords(verifier.Log)) && len(missingCapabilities()) > 0:
		// Without the capability, the verifier reports an unknown helper.
		return refuse("not permitted: the process lacks "+strings.Join(missingCapabilities(), " and "), lastWords(verifier.Log))
	case errors.As(err, &verifier) && noHelper(lastWords(verifier.Log)) && strings.Contains(lastWords(verifier.Log), "bpf_probe_read"):
		// Under lockdown, too, the verifier reports an unknown helper; every kernel
		// has this one.
		return refuse("not permitted, although the process has the capabilities: the kernel lets no eBPF program read its memory (lockdown=confidentiality)", "the verifier says: "+lastWords(verifier.Log))
	case errors.As(err, &verifier):
		return refuse("the kernel's verifier rejects it", fmt.Sprintf("%v: %s", verifier.Cause, lastWords(verifier.Log)))
	case errors.Is(err, link.ErrNotSupported), errors.Is(err, ebpf.ErrNotSupported):
		return refuse("this kernel does not support it: "+strings.TrimSuffix(err.Error(), ": not supported"), "")
	case strings.Contains(err.Error(), "neither debugfs nor tracefs"):
		return refuse("this kernel has no kprobes (CONFIG_KPROBES), or shows them in neither perf nor a mounted tracefs", "")
	case errors.Is(err, os.ErrNotExist):
		return refuse("this kernel has no such function or tracepoint", "")
	case isOne(err, lacks):
		return refuse(err.Error(), "")
	}
	return err
}

// lacks are errors of a kernel that does not have the requested feature.
var lacks = []error{
	unix.ENOSYS, unix.EOPNOTSUPP, errNotSupp, unix.EINVAL, unix.EADDRNOTAVAIL, unix.EILSEQ, unix.ESRCH, btf.ErrNotFound,
}

// errNotSupp is ENOTSUPP, which the kernel returns although user space has no such
// error.
const errNotSupp = unix.Errno(524)

// shortages are temporary errors: the machine is short of a resource, or another
// program is in the way. A later attempt may succeed.
var shortages = []error{
	unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.ENOSPC, unix.EDQUOT, unix.EAGAIN, unix.EINTR, unix.EBUSY, unix.EEXIST, unix.ETIMEDOUT, unix.EIO,
}

func isOne(err error, of []error) bool {
	return slices.ContainsFunc(of, func(e error) bool { return errors.Is(err, e) })
}

// Unsupported reports whether an error of New or Load means that this machine
// cannot run a probe: the kernel lacks a function, a feature or its type
// information, its verifier rejects the program, or a policy forbids it
// (capabilities, lockdown, a security module, a system call filter). A later
// attempt would fail the same way. Any other error is a failure of a probe that
// should work.
func Unsupported(err error) bool {
	if errors.As(err, new(*UnsupportedError)) {
		return true
	}
	return errors.As(err, new(*refusal)) && !isOne(err, shortages)
}

// Reason returns why a probe is not supported in one readable line, without the
// verifier's log.
func Reason(err error) string {
	var unsupported *UnsupportedError
	var r *refusal
	switch {
	case errors.As(err, &unsupported):
		return unsupported.Error()
	case errors.As(err, &r):
		return r.text
	}
	return err.Error()
}

// noHelper reports whether the verifier refused a helper as unknown.
func noHelper(words string) bool {
	return strings.Contains(words, "cannot use helper") || strings.Contains(words, "unknown func")
}

// lastWords returns the last line of a verifier's log before its statistics, which
// names the cause.
func lastWords(log []string) string {
	for i := len(log) - 1; i >= 0; i-- {
		line := strings.TrimSpace(log[i])
		if line == "" || strings.HasPrefix(line, "processed ") || strings.HasPrefix(line, "verification time") || strings.HasPrefix(line, "stack depth") {
			continue
		}
		return line
	}
	return "no log"
}

// missingCapabilities names the capabilities that the process lacks for tracing
// with eBPF.
func missingCapabilities() []string {
	effective, err := kernel.OwnCapabilities()
	if err != nil {
		return nil
	}
	return missingFrom(effective)
}

func missingFrom(effective uint64) []string {
	has := func(c int) bool { return effective&(1<<c) != 0 }
	// Before 5.8 CAP_SYS_ADMIN covered CAP_BPF and CAP_PERFMON.
	if has(unix.CAP_SYS_ADMIN) {
		return nil
	}
	var missing []string
	for _, c := range []struct {
		number int
		name   string
	}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}} {
		if !has(c.number) {
			missing = append(missing, c.name)
		}
	}
	return missing
}
