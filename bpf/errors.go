package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// explain turns an error of a load or an attachment into one that says what to
// do about it. The library answers any EPERM with advice on a memory limit,
// which is seldom the cause and hides the real one.
func explain(err error) error {
	if err == nil {
		return nil
	}
	var verifier *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &verifier):
		if missing := missingCapabilities(); len(missing) > 0 {
			return fmt.Errorf("not permitted: the process lacks %s", strings.Join(missing, " and "))
		}
		return errors.New("not permitted, although the process has the capabilities: the kernel forbids this (lockdown, a security module, or a system call filter)")
	case errors.As(err, &verifier) && noHelper(lastWords(verifier.Log)) && len(missingCapabilities()) > 0:
		// The verifier knows no capabilities: to it there is no such helper.
		return fmt.Errorf("not permitted: the process lacks %s (%s)", strings.Join(missingCapabilities(), " and "), lastWords(verifier.Log))
	case errors.As(err, &verifier) && noHelper(lastWords(verifier.Log)) && strings.Contains(lastWords(verifier.Log), "bpf_probe_read"):
		// Nor does it know lockdown, and every kernel has this helper.
		return fmt.Errorf("not permitted, although the process has the capabilities: the kernel lets no eBPF program read its memory (lockdown=confidentiality; the verifier says: %s)", lastWords(verifier.Log))
	case errors.As(err, &verifier):
		return fmt.Errorf("the kernel's verifier rejects it: %w: %s", verifier.Cause, lastWords(verifier.Log))
	case errors.Is(err, link.ErrNotSupported), errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("this kernel does not support it: %s", strings.TrimSuffix(err.Error(), ": not supported"))
	case strings.Contains(err.Error(), "neither debugfs nor tracefs"):
		return errors.New("this kernel has no kprobes (CONFIG_KPROBES), or shows them in neither perf nor a mounted tracefs")
	case errors.Is(err, os.ErrNotExist):
		return errors.New("this kernel has no such function or tracepoint")
	}
	return err
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
