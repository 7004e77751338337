package bpf

import (
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// BenchmarkFlowLookupCost compares two ways to find what belongs to a packet that a socket
// sends: a table with flow's key, as flow does it, and the socket's own storage. The programs
// are attached together and see the same packets; each does nothing but find its entry.
// Results are medians over windows, minus those of an empty program.
func BenchmarkFlowLookupCost(b *testing.B) {
	need.Root(b)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Skipf("needs the kernel's BPF statistics: %v", err)
	}
	defer stats.Close()
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	newMap := func(spec *ebpf.MapSpec) *ebpf.Map {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { m.Close() })
		return m
	}
	storage := newMap(&ebpf.MapSpec{Type: ebpf.SkStorage, KeySize: 4, ValueSize: 4, Flags: unix.BPF_F_NO_PREALLOC, Key: number, Value: number})
	key := make([]byte, unsafe.Sizeof(flowKey{}))
	table := newMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: uint32(len(key)), ValueSize: 32, MaxEntries: 65536})
	if err := table.Put(key, make([]byte, 32)); err != nil {
		b.Fatal(err)
	}
	load := func(name string, code ...asm.Instruction) *emptyProgram {
		return loadProgram(b, &ebpf.ProgramSpec{
			Name: name, License: "GPL", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, SectionName: "cgroup_skb/egress",
			Instructions: append(code, asm.Mov.Imm(asm.R0, 1).WithSymbol("out"), asm.Return()),
		})
	}
	find := asm.Instructions{asm.Mov.Imm(asm.R1, 0)}
	for at := range len(key) / 8 {
		find = append(find, asm.StoreMem(asm.RFP, int16(8*at-len(key)), asm.R1, asm.DWord))
	}
	const sk = 168 // offset in struct __sk_buff
	programs := map[string]*emptyProgram{
		"empty": load("empty"),
		"table": load("table", append(find,
			asm.LoadMapPtr(asm.R1, table.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, int32(-len(key))), asm.FnMapLookupElem.Call(),
		)...),
		"storage": load("storage",
			asm.LoadMem(asm.R1, asm.R1, sk, asm.DWord), asm.JEq.Imm(asm.R1, 0, "out"), asm.FnSkFullsock.Call(), asm.JEq.Imm(asm.R0, 0, "out"),
			asm.LoadMapPtr(asm.R1, storage.FD()), asm.Mov.Reg(asm.R2, asm.R0), asm.Mov.Imm(asm.R3, 0), asm.Mov.Imm(asm.R4, 1), asm.FnSkStorageGet.Call(),
		),
	}
	x, y := newPair(b)
	step := everything(b, x, y)
	for _, p := range programs {
		p.on(b)
		defer p.off(b)
	}
	per := map[string][]float64{}
	for b.Loop() {
		for range 30 {
			before := map[string]*ebpf.ProgramStats{}
			read := func(f func(name string, now *ebpf.ProgramStats)) {
				for name, p := range programs {
					now, err := p.Stats()
					if err != nil {
						b.Fatal(err)
					}
					f(name, now)
				}
			}
			read(func(name string, now *ebpf.ProgramStats) { before[name] = now })
			w := &worker{work: func() error { return step(100 * time.Millisecond) }}
			together(b, w)
			read(func(name string, now *ebpf.ProgramStats) {
				if runs := now.RunCount - before[name].RunCount; runs > 0 {
					per[name] = append(per[name], float64(now.Runtime-before[name].Runtime)/float64(runs))
				}
			})
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, name := range []string{"table", "storage"} {
		b.ReportMetric(median(per[name])-median(per["empty"]), name+"-ns")
	}
}
