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

// refusal is what the kernel answered to a load or an attachment, in words that
// say what to do about it.
type refusal struct {
	text   string
	answer string // the verifier's own words, which only who develops understands
	cause  error
}

func (e *refusal) Error() string {
	if e.answer == "" {
		return e.text
	}
	return e.text + ": " + e.answer
}

func (e *refusal) Unwrap() error { return e.cause }

// explain turns an error of a load or an attachment into a refusal, where it is
// known what is behind it. The library answers any EPERM with advice on a memory
// limit, which is seldom the cause and hides the real one.
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
		// The verifier knows no capabilities: to it there is no such helper.
		return refuse("not permitted: the process lacks "+strings.Join(missingCapabilities(), " and "), lastWords(verifier.Log))
	case errors.As(err, &verifier) && noHelper(lastWords(verifier.Log)) && strings.Contains(lastWords(verifier.Log), "bpf_probe_read"):
		// Nor does it know lockdown, and every kernel has this helper.
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

// lacks are the answers of a kernel that does not have what it is asked for.
var lacks = []error{
	unix.ENOSYS, unix.EOPNOTSUPP, errNotSupp, unix.EINVAL, unix.EADDRNOTAVAIL, unix.EILSEQ, unix.ESRCH, btf.ErrNotFound,
}

// errNotSupp is the kernel's ENOTSUPP, which it lets out although it is no error
// of user space.
const errNotSupp = unix.Errno(524)

// shortages are the answers of a machine that is short of something, and of one
// where another program is in the way: the next attempt may find it otherwise.
var shortages = []error{
	unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.ENOSPC, unix.EDQUOT, unix.EAGAIN, unix.EINTR, unix.EBUSY, unix.EEXIST, unix.ETIMEDOUT, unix.EIO,
}

func isOne(err error, of []error) bool {
	return slices.ContainsFunc(of, func(e error) bool { return errors.Is(err, e) })
}

// Unsupported reports whether an error of New or Load says that this machine
// cannot run a probe, as long as it is what it is: the kernel lacks a function, a
// feature or its type information, its verifier does not take the program (it will
// not take it next time either), or a policy forbids it (capabilities, lockdown, a
// security module, a system call filter). Any other error is a failure: of
// something that should work.
func Unsupported(err error) bool {
	if errors.As(err, new(*UnsupportedError)) {
		return true
	}
	return errors.As(err, new(*refusal)) && !isOne(err, shortages)
}

// Reason is why a probe is not supported, in one line that a person understands:
// without what the verifier says.
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

// noHelper reports whether the verifier refuses a helper as unknown.
func noHelper(words string) bool {
	return strings.Contains(words, "cannot use helper") || strings.Contains(words, "unknown func")
}

// lastWords gives the end of a verifier's log that says why: its last line but
// the statistics.
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

// missingCapabilities names what the process lacks for tracing with eBPF.
func missingCapabilities() []string {
	effective, err := kernel.OwnCapabilities()
	if err != nil {
		return nil
	}
	return missingFrom(effective)
}

func missingFrom(effective uint64) []string {
	has := func(c int) bool { return effective&(1<<c) != 0 }
	// Before 5.8 there were no finer capabilities than this one.
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
