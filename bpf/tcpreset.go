package bpf

import (
	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type part -type size -type slot Tcpreset tcpreset.bpf.c

var tcpreset = definition{
	spec:    objects.LoadTcpreset,
	prepare: prepareTCPReset,
	hooks: []hook{
		{
			name: "resets sent (tcp_send_reset)",
			rungs: []rung{
				{kind: RawTracepoint, programs: []string{"raw_tcp_send_reset"}},
				{kind: Fentry, programs: []string{"fen_reset_v4", "fen_reset_v6", "fen_active"}},
				{kind: Kprobe, programs: []string{"kp_reset_v4", "kp_reset_v6", "kp_active"}},
			},
		},
		{
			name: "resets sent without a full socket (tcp_v4_send_reset, tcp_v6_send_reset)",
			rungs: []rung{
				{kind: Fentry, programs: []string{"fen_rest_v4", "fen_rest_v6"}},
				{kind: Kprobe, programs: []string{"kp_rest_v4", "kp_rest_v6"}},
			},
			optional: true,
			without:  "resets that answer a packet without a socket, which the tracepoint reports from Linux 6.10 on",
			needed:   resetsNeedFunctions,
		},
		{
			name: "resets received (tcp_receive_reset)",
			rungs: []rung{
				{kind: RawTracepoint, programs: []string{"raw_tcp_receive_reset"}},
				{kind: BTFTracepoint, programs: []string{"btf_tcp_receive_reset"}},
				{kind: Fentry, programs: []string{"fen_receive"}},
				{kind: Kprobe, programs: []string{"kp_receive"}},
			},
		},
		{
			name: "resets received in SYN_RECV and TIME_WAIT (tcp_check_req, tcp_timewait_state_process, kfree_skb)",
			rungs: []rung{
				{kind: Fentry, programs: []string{"fex_request", "fex_timewait"}},
				{kind: Kprobe, programs: []string{"krp_request", "kp_request", "krp_timewait", "kp_timewait"}},
				// The last hook, because it runs for every freed packet.
				{kind: RawTracepoint, programs: []string{"raw_freed"}},
				{kind: BTFTracepoint, programs: []string{"btf_freed"}},
			},
			optional: true,
			without:  "resets received in SYN_RECV and TIME_WAIT, which need function hooks or the drop reasons of Linux 6.15 or so",
		},
	},
	events: []EventType{TCPResetNosock, TCPResetActive, TCPResetProcess, TCPResetReceive},
	slots:  int(objects.TcpresetSlotSLOTS),
}

// Event types of tcpreset.
const (
	TCPResetNosock  = EventType(objects.SharedEventTypeEVENT_TCPRESET_NOSOCK)
	TCPResetActive  = EventType(objects.SharedEventTypeEVENT_TCPRESET_ACTIVE)
	TCPResetProcess = EventType(objects.SharedEventTypeEVENT_TCPRESET_PROCESS)
	TCPResetReceive = EventType(objects.SharedEventTypeEVENT_TCPRESET_RECEIVE)
)

func prepareTCPReset(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	// Without symbols or this function's address, data that arrive after close()
	// count as a received reset too.
	var validate [objects.TcpresetSizePARTS]objects.TcpresetPart
	if parts := p.loader.symbols.ranges([]string{"tcp_validate_incoming"}); len(parts) > 0 && len(parts) <= len(validate) {
		for i, part := range parts {
			validate[i].Start, validate[i].End = part[0], part[1]
		}
	} else {
		p.limitations = append(p.limitations, "which side reset a connection when data came after close(): that counts as a reset received, since the kernel's symbols do not tell where tcp_validate_incoming() lies")
	}
	if err := set(spec, objects.TcpresetVarValidate, validate); err != nil {
		return err
	}
	return set(spec, objects.TcpresetVarReasonArg, reasonArg(types))
}

// reasonArg returns the index of tcp_send_reset's reason argument, 0 if it has
// none.
func reasonArg(types *kernelTypes) uint32 {
	if params, ok := types.tracepoint("tcp_send_reset"); ok && len(params) >= 3 {
		return 2
	}
	return 0
}

// resetsNeedFunctions reports whether function hooks are needed. A tracepoint
// without a reason argument omits resets that answer a packet without a full
// socket. If functions are hooked instead of the tracepoint, they see all resets.
func resetsNeedFunctions(p *Probe, types *kernelTypes) bool {
	return p.hooks[0].Kind == RawTracepoint && reasonArg(types) == 0
}

// Counter slots of tcpreset.
const (
	ResetNosock  = int(objects.TcpresetSlotNOSOCK)
	ResetActive  = int(objects.TcpresetSlotACTIVE)
	ResetProcess = int(objects.TcpresetSlotPROCESS)
	ResetReceive = int(objects.TcpresetSlotRECEIVE)
)
