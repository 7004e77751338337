package bpf

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// BenchmarkHooksCost measures the cost of the first, second, third and fourth program
// on one tracepoint, when all of them only return. A tracepoint with one function is
// called directly, one with several through a list. Turns with n and n-1 programs
// alternate; the result is the median of their differences, with the distance of the
// quartiles. "none" compares turns that both have no program, and thus shows the noise.
//
// The tracepoint is bpf_test_finish. Only the system call that the benchmark repeats
// fires it.
func BenchmarkHooksCost(b *testing.B) {
	need.Root(b)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 2))
	call := newTestRun(b)
	for _, section := range []string{"raw_tp/bpf_test_finish", "tp_btf/bpf_test_finish"} {
		const most = 4
		var programs [most]*emptyProgram
		for i := range programs {
			programs[i] = newEmpty(b, section, "bpf_test_finish")
		}
		for n := range most + 1 {
			name := []string{"none", "first", "second", "third", "fourth"}[n]
			b.Run(section+"/"+name, func(b *testing.B) {
				for _, p := range programs[:max(0, n-1)] {
					p.on(b)
					defer p.off(b)
				}
				for b.Loop() {
					call.alternate(b, func(on bool) {
						switch {
						case n == 0:
						case on:
							programs[n-1].on(b)
						default:
							programs[n-1].off(b)
						}
					})
				}
			})
		}
	}
}

// BenchmarkChainedHooksCost is BenchmarkHooksCost for programs of which only one is
// attached: it calls the others in turn, each the next, by tail calls. The first turn
// compares the calling program alone with nothing.
func BenchmarkChainedHooksCost(b *testing.B) {
	need.Root(b)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 2))
	call := newTestRun(b)
	const most = 4
	chain, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: most})
	if err != nil {
		b.Fatal(err)
	}
	defer chain.Close()
	// next calls what follows in the chain, after whatever place is empty.
	next := func(first int) *emptyProgram {
		code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
		for i := first; i < most; i++ {
			code = append(code, asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, chain.FD()), asm.Mov.Imm(asm.R3, int32(i)), asm.FnTailCall.Call())
		}
		return loadProgram(b, &ebpf.ProgramSpec{
			Name: "chained", License: "GPL", AttachTo: "bpf_test_finish", SectionName: "tp_btf/bpf_test_finish",
			Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp,
			Instructions: append(code, asm.Mov.Imm(asm.R0, 0), asm.Return()),
		})
	}
	root := next(0)
	var programs [most]*emptyProgram
	for i := range programs {
		programs[i] = next(i + 1)
	}
	for n := range most + 1 {
		b.Run([]string{"root", "first", "second", "third", "fourth"}[n], func(b *testing.B) {
			for i := range n - 1 {
				if err := chain.Put(uint32(i), programs[i].Program); err != nil {
					b.Fatal(err)
				}
			}
			if n > 0 {
				root.on(b)
				defer root.off(b)
			}
			for b.Loop() {
				call.alternate(b, func(on bool) {
					var err error
					switch {
					case n == 0 && on:
						root.on(b)
					case n == 0:
						root.off(b)
					case on:
						err = chain.Put(uint32(n-1), programs[n-1].Program)
					default:
						err = chain.Delete(uint32(n - 1))
					}
					if err != nil {
						b.Fatal(err)
					}
				})
			}
		})
	}
}

// testRun is the system call BPF_PROG_TEST_RUN for a program that only returns.
type testRun struct {
	attr struct { // union bpf_attr, member test
		prog, result            uint32
		sizeIn, sizeOut         uint32
		in, out                 uint64
		repeat, duration        uint32
		contextIn, contextOut   uint32
		pointerIn, pointerOut   uint64
		flags, cpu, batch, some uint32
	}
	packet [64]byte
	pin    runtime.Pinner
}

func newTestRun(b *testing.B) *testRun {
	b.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "nothing", License: "GPL", Type: ebpf.SocketFilter,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { program.Close() })
	c := &testRun{}
	c.pin.Pin(c)
	b.Cleanup(c.pin.Unpin)
	c.attr.prog = uint32(program.FD())
	c.attr.in, c.attr.sizeIn = uint64(uintptr(unsafe.Pointer(&c.packet))), uint32(len(c.packet))
	c.attr.repeat = 1
	return c
}

// turn calls for a short while and returns the CPU time of a call, in nanoseconds.
func (c *testRun) turn(b *testing.B) (ns float64) {
	b.Helper()
	w := &worker{work: func() error {
		const calls = 20000
		start := testkit.ThreadCPU()
		for range calls {
			if _, _, errno := unix.RawSyscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&c.attr)), unsafe.Sizeof(c.attr)); errno != 0 {
				return fmt.Errorf("run a program by BPF_PROG_TEST_RUN: %w", errno)
			}
		}
		ns = float64(testkit.ThreadCPU()-start) / float64(calls) / float64(time.Nanosecond)
		return nil
	}}
	together(b, w)
	return ns
}

// alternate compares turns with something on to turns without it, and reports the median of
// the differences, with the distance of the quartiles.
func (c *testRun) alternate(b *testing.B, set func(on bool)) {
	b.Helper()
	var cost []float64
	for i := range 4 * costPairs {
		var turns [2]float64 // off, on
		for j := range turns {
			side := (i + j) % 2
			if side == 1 {
				set(true)
			}
			turns[side] = c.turn(b)
			if side == 1 {
				set(false)
			}
		}
		cost = append(cost, turns[1]-turns[0])
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(cost), "ns/run")
	b.ReportMetric(quartiles(cost), "ns-iqr")
}
