// Package slowfilter is a tc program that makes each packet slow: it holds the CPU,
// then drops the packet. On a device's egress the program acts as a slow driver, on
// its ingress as a long softirq.
package slowfilter

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
)

// Filter is a loaded program and its counter.
type Filter struct {
	program    *ebpf.Program
	big, count *ebpf.Map
}

// Load loads a filter that holds the CPU for wait per packet. It must be closed.
func Load(wait time.Duration) (f *Filter, err error) {
	f = &Filter{}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	// The number of loops is limited; copying this much memory takes long enough on
	// any machine.
	if f.big, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 1 << 20, MaxEntries: 2}); err != nil {
		return nil, fmt.Errorf("make the slow filter's memory: %w", err)
	}
	if f.count, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		return nil, fmt.Errorf("make the slow filter's counter: %w", err)
	}
	const shot = 2 // TC_ACT_SHOT
	f.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "slow_filter", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.FnKtimeGetNs.Call(),
			asm.Mov.Reg(asm.R6, asm.R0),
			asm.StoreImm(asm.RFP, -4, 0, asm.Word), // the source
			asm.StoreImm(asm.RFP, -8, 1, asm.Word), // the destination
			asm.LoadMapPtr(asm.R1, f.big.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Reg(asm.R7, asm.R0),
			asm.Mov.Imm(asm.R8, 8000),
			asm.LoadMapPtr(asm.R1, f.big.FD()).WithSymbol("copy"),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -8),
			asm.Mov.Reg(asm.R3, asm.R7),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(),
			asm.FnKtimeGetNs.Call(),
			asm.Sub.Reg(asm.R0, asm.R6),
			asm.JGE.Imm(asm.R0, int32(wait), "done"),
			asm.Sub.Imm(asm.R8, 1),
			asm.JNE.Imm(asm.R8, 0, "copy"),
			asm.Ja.Label("out"),
			asm.LoadMapPtr(asm.R1, f.count.FD()).WithSymbol("done"),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, shot).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("load the slow filter: %w", err)
	}
	return f, nil
}

// Attach attaches the filter to a device of the thread's network namespace, at
// netlink.HANDLE_MIN_EGRESS or netlink.HANDLE_MIN_INGRESS. It stays until the device
// or its clsact qdisc is deleted.
func (f *Filter) Attach(device string, hook uint32) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	return errors.Join(
		netlink.QdiscAdd(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "clsact"}),
		netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: link.Attrs().Index, Parent: hook, Handle: 1, Protocol: 3 /* all */, Priority: 1},
			Fd:          f.program.FD(), Name: "slow_filter", DirectAction: true,
		}))
}

// Held returns the number of packets that were held for the whole time.
func (f *Filter) Held() (n uint64, err error) {
	err = f.count.Lookup(uint32(0), &n)
	return n, err
}

// Close frees what Load made. An attached program stays attached.
func (f *Filter) Close() {
	f.program.Close()
	f.count.Close()
	f.big.Close()
}
