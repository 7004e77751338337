package bpf

import (
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"

	"nodeskoop/bpf/internal/objects"
)

// Reasons maps the kernel's reason numbers for drops and resets to names. The
// numbers differ between kernels, so the names come from the running kernel's BTF.
type Reasons struct {
	drop   map[uint32]string
	subsys map[uint32]string
	reset  map[uint32]string
}

// Numbers that no kernel uses.
const (
	// ReasonNone means that the kernel gives no reasons (before 5.17).
	ReasonNone = uint32(objects.SharedReasonREASON_NONE)
	// ReasonOverflow counts drops for which the table had no room.
	ReasonOverflow = uint32(objects.SharedReasonREASON_OVERFLOW)
)

// Drop returns the name of a drop reason, such as "NETFILTER_DROP".
func (r *Reasons) Drop(n uint32) string {
	switch n {
	case ReasonNone:
		return "NOT_SPECIFIED"
	case ReasonOverflow:
		return "OVERFLOW"
	}
	if name, ok := r.drop[n]; ok {
		return name
	}
	// The upper half of the number is the subsystem, which numbers its own reasons.
	if name, ok := r.subsys[n>>16]; ok && n>>16 != 0 {
		return name + "_" + strconv.FormatUint(uint64(n&0xffff), 10)
	}
	return "REASON_" + strconv.FormatUint(uint64(n), 10)
}

// Reset returns the name of a reason for sending RST, such as "TCP_ABORT_ON_CLOSE",
// or "" if the kernel gives none.
func (r *Reasons) Reset(n uint32) string {
	if n == ReasonNone {
		return ""
	}
	if name, ok := r.reset[n]; ok {
		return name
	}
	return "REASON_" + strconv.FormatUint(uint64(n), 10)
}

// reasonModules are modules that define drop reasons of their own.
var reasonModules = []string{"openvswitch", "mac80211"}

func readReasons(types *kernelTypes) *Reasons {
	specs := []*btf.Spec{types.spec}
	for _, name := range reasonModules {
		// The module is not loaded, or not readable without CAP_SYS_ADMIN. The
		// number is shown instead.
		if spec, err := types.cache.Module(name); err == nil {
			specs = append(specs, spec)
		}
	}
	return reasonsFrom(specs)
}

func reasonsFrom(specs []*btf.Spec) *Reasons {
	r := &Reasons{drop: map[uint32]string{}, subsys: map[uint32]string{}, reset: map[uint32]string{}}
	for _, spec := range specs {
		collect(spec, "skb_drop_reason", "SKB_DROP_REASON_", r.drop)
		collect(spec, "skb_drop_reason_subsys", "SKB_DROP_REASON_SUBSYS_", r.subsys)
		collect(spec, "sk_rst_reason", "SK_RST_REASON_", r.reset)
		// These enumerators include the subsystem in the upper half.
		for _, name := range []string{"mac80211_drop_reason", "ovs_drop_reason", "qdisc_drop_reason"} {
			collect(spec, name, "", r.drop)
		}
	}
	return r
}

// collect adds the enumerators of an enum, without the prefix. It skips enumerators
// that only mark an end or a mask.
func collect(spec *btf.Spec, enum, prefix string, into map[uint32]string) {
	types, err := spec.AnyTypesByName(enum)
	if err != nil {
		return
	}
	for _, t := range types {
		e, ok := btf.As[*btf.Enum](t)
		if !ok {
			continue
		}
		for _, v := range e.Values {
			name := strings.TrimPrefix(v.Name, prefix)
			if strings.HasPrefix(name, "_") || name == "MAX" || name == "NUM" || name == "SUBSYS_MASK" {
				continue
			}
			if _, ok := into[uint32(v.Value)]; !ok {
				into[uint32(v.Value)] = name
			}
		}
	}
}
