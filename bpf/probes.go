package bpf

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

// A rung is one way to hook in: programs that are attached together or not at
// all, those that end a measurement before those that begin it.
type rung struct {
	kind     Kind
	programs []string
	lacks    string // what this way does not see
}

// A hook is what a probe watches, and the ways to, best first.
type hook struct {
	name     string
	rungs    []rung
	optional bool
	without  string                          // what the probe misses without it, for an optional one
	needed   func(*Probe, *kernelTypes) bool // nil: always; asked when the hooks before it are attached
}

type definition struct {
	spec     func() (*ebpf.CollectionSpec, error)
	prepare  func(*Probe, *ebpf.CollectionSpec, *kernelTypes) error
	begin    func(*Probe) error // nil or: fills maps before anything is attached
	started  func(*Probe) error // nil or: called when everything is attached
	hooks    []hook
	events   []EventType
	slots    int // of the counters in use
	defaults Config
	note     string // for users of kernels on which it cannot work
}

// Probes are the names of all probes that Load knows.
func Probes() []string { return slices.Sorted(maps.Keys(definitions)) }

// thresholds sets the constants of the probes that measure a time.
func thresholds(p *Probe, spec *ebpf.CollectionSpec, _ *kernelTypes) error {
	for name, d := range map[string]time.Duration{
		"slow_ns": p.config.Slow, "slow100_ns": p.config.Slow100, "event_ns": p.config.Event,
	} {
		if _, ok := spec.Variables[name]; !ok {
			continue
		}
		if err := set(spec, name, uint64(d)); err != nil {
			return err
		}
	}
	return nil
}

var definitions = map[string]*definition{
	"packetloss": {
		spec:    objects.LoadPacketloss,
		prepare: preparePacketloss,
		begin:   beginLosses,
		started: startedLosses,
		hooks: []hook{
			{
				name:     lossModules,
				rungs:    []rung{{kind: RawTracepoint, programs: []string{"raw_module_load"}}},
				optional: true,
				without:  "which function of a module loaded later freed a packet, for up to an interval",
				needed: func(_ *Probe, types *kernelTypes) bool {
					_, ok := types.tracepoint("module_load") // a kernel without modules has none
					return ok
				},
			},
			{
				name:     "fragments that waited for too long (timer_expire_entry)",
				rungs:    []rung{{kind: RawTracepoint, programs: []string{"raw_timer_end", "raw_timer"}}},
				optional: true,
				without:  "whose the fragments are that wait for others in vain: they are unattributed",
			},
			{
				name: lossSockets,
				rungs: []rung{
					{kind: Fentry, programs: []string{"fen_check_req", "fen_timewait", "fen_out_of_window"}},
					{kind: Kprobe, programs: []string{"kp_check_req", "kp_timewait", "kp_out_of_window"}},
				},
				optional: true,
				without:  "which acknowledgements of handshakes and which segments out of order were no loss: all count as lost; the kernel tells from 6.11 on",
				needed:   func(_ *Probe, types *kernelTypes) bool { return !hasReceiver(types) },
			},
			{
				name: "dropped packets (kfree_skb)",
				rungs: []rung{
					{kind: RawTracepoint, programs: []string{"raw_kfree_skb"}},
					{kind: BTFTracepoint, programs: []string{"btf_kfree_skb"}},
				},
			},
		},
		events: []EventType{PacketLoss},
		slots:  int(dropClasses),
	},
	"tcpreset": {
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
				without:  "resets that answer a packet without a socket, which the tracepoint tells of from Linux 6.10 on",
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
					// Runs for every packet that is freed, so it is the last.
					{kind: RawTracepoint, programs: []string{"raw_freed"}},
					{kind: BTFTracepoint, programs: []string{"btf_freed"}},
				},
				optional: true,
				without:  "resets received in SYN_RECV and TIME_WAIT, which need function hooks or the drop reasons of Linux 6.15 or so",
			},
		},
		events: []EventType{TCPResetNosock, TCPResetActive, TCPResetProcess, TCPResetReceive},
		slots:  int(objects.TcpresetSlotSLOTS),
	},
	"tcpretrans": {
		spec:    objects.LoadTcpretrans,
		prepare: prepareTCPRetrans,
		hooks: []hook{
			{
				name: "retransmitted segments (tcp_retransmit_skb)",
				rungs: []rung{
					{kind: RawTracepoint, programs: []string{"raw_tcp_retransmit_skb"}},
					{kind: BTFTracepoint, programs: []string{"btf_tcp_retransmit_skb"}},
				},
			},
			{
				name: "retransmitted SYN-ACKs (tcp_retransmit_synack)",
				rungs: []rung{
					{kind: RawTracepoint, programs: []string{"raw_tcp_retransmit_synack"}},
					{kind: BTFTracepoint, programs: []string{"btf_tcp_retransmit_synack"}},
				},
				optional: true,
				without:  "retransmitted SYN-ACKs",
			},
		},
		events: []EventType{TCPRetrans},
		slots:  int(objects.TcpretransSlotSLOTS),
	},
	"netiftxlatency": {
		spec:    objects.LoadNetiftxlatency,
		prepare: thresholds,
		hooks: []hook{{
			name: "packets sent (net_dev_queue, net_dev_start_xmit, net_dev_xmit)",
			rungs: []rung{
				// Three times per packet: reading without helpers pays here.
				{kind: BTFTracepoint, programs: []string{"btf_xmit", "btf_start_xmit", "btf_queue"}},
				{kind: RawTracepoint, programs: []string{"raw_xmit", "raw_start_xmit", "raw_queue"}},
			},
		}},
		events:   []EventType{TxlatQdisc100ms, TxlatNetdev100ms},
		slots:    int(objects.NetiftxlatencySlotSLOTS),
		defaults: Config{Slow100: 100 * time.Millisecond},
	},
	"net_softirq": {
		spec:    objects.LoadNetSoftirq,
		prepare: thresholds,
		hooks: []hook{{
			name: "network softirqs (softirq_raise, softirq_entry, softirq_exit)",
			rungs: []rung{
				{kind: RawTracepoint, programs: []string{"raw_exit", "raw_entry", "raw_raise"}},
				{kind: BTFTracepoint, programs: []string{"btf_exit", "btf_entry", "btf_raise"}},
			},
		}},
		events:   []EventType{NetsoftirqSchedSlow, NetsoftirqSched100ms, NetsoftirqExcuteSlow, NetsoftirqExcute100ms},
		slots:    int(objects.NetSoftirqSlotSLOTS),
		defaults: Config{Slow: 10 * time.Millisecond, Slow100: 100 * time.Millisecond},
	},
	"kernellatency": {
		spec:    objects.LoadKernellatency,
		prepare: thresholds,
		hooks: []hook{
			{
				name: "packets received (netif_receive_skb to the transport protocol)",
				rungs: []rung{
					{kind: Fentry, programs: []string{"fen_protocol4", "fen_protocol6", "fen_deliver4", "fen_deliver6", "raw_receive"}},
					{kind: Kprobe, programs: []string{"kp_protocol4", "kp_protocol6", "kp_deliver4", "kp_deliver6", "raw_receive"}},
					{
						kind: BTFTracepoint, programs: []string{"raw_tcp_probe", "btf_data_ready", "raw_receive"},
						lacks: "received packets that open or close a TCP connection or reach no socket, and the stages on the way: this kernel allows no function hooks",
					},
					{
						kind: RawTracepoint, programs: []string{"raw_tcp_probe", "raw_data_ready", "raw_receive"},
						lacks: "received packets that open or close a TCP connection or reach no socket, and the stages on the way: this kernel allows no function hooks",
					},
					{
						kind: RawTracepoint, programs: []string{"raw_tcp_probe", "raw_receive"},
						lacks: "received packets other than those of established TCP connections, and the stages on the way: this kernel allows no function hooks",
					},
				},
			},
			{
				name: "packets sent (the socket to the device)",
				rungs: []rung{
					{kind: Fentry, programs: []string{"fen_finish4", "fen_finish6", "fen_output4", "fen_output6", "fen_out4", "fen_out6", "fen_xmit4", "fen_xmit6"}},
					{kind: Kprobe, programs: []string{"kp_finish4", "kp_finish6", "kp_output4", "kp_output6", "kp_out4", "kp_out6", "kp_xmit4", "kp_xmit6"}},
					{
						kind: BTFTracepoint, programs: []string{"btf_queue", "raw_neigh_send", "raw_neigh_done", "raw_neigh_update"},
						lacks: "sent packets other than TCP's, and the stages on the way: this kernel allows no function hooks",
					},
					{
						kind: RawTracepoint, programs: []string{"raw_queue", "raw_neigh_send", "raw_neigh_done", "raw_neigh_update"},
						lacks: "sent packets other than TCP's, and the stages on the way: this kernel allows no function hooks",
					},
				},
			},
		},
		events:   []EventType{RxKernelSlow, TxKernelSlow},
		slots:    int(objects.KernellatencySlotSLOTS),
		defaults: Config{Slow: 10 * time.Millisecond, Slow100: 100 * time.Millisecond, Event: 100 * time.Millisecond},
	},
	"socketlatency": {
		spec:    objects.LoadSocketlatency,
		prepare: thresholds,
		hooks: []hook{
			{
				name: "reads (data ready to data taken)",
				rungs: []rung{
					// State that goes with the socket needs type information.
					{kind: BTFTracepoint, programs: []string{"btf_received", "btf_read_tcp", "btf_ready"}},
					{kind: RawTracepoint, programs: []string{"raw_received", "raw_read_tcp", "raw_ready"}},
					{kind: Fentry, programs: []string{"fen_consume", "fen_cleanup", "fen_ready"}},
					{kind: Kprobe, programs: []string{"kp_consume", "kp_cleanup", "kp_ready"}},
					{
						kind: RawTracepoint, programs: []string{"raw_read_pieces", "raw_segment"},
						lacks: "reads of datagrams, and where one read of whole segments ends and the next begins: this kernel has neither the tracepoints for them nor function hooks",
					},
				},
			},
			{
				name: "writes (data written to their last byte sent, TCP)",
				rungs: []rung{
					{kind: BTFTracepoint, programs: []string{"btf_queue", "btf_write"}},
					{kind: RawTracepoint, programs: []string{"raw_queue", "raw_write"}},
					{kind: Fentry, programs: []string{"fen_transmit", "fen_write"}},
					{kind: Kprobe, programs: []string{"kp_transmit", "kp_write"}},
				},
				optional: true,
				without:  "writes, which need the tracepoint tcp_sendmsg_locked (Linux 6.16 or so) or function hooks",
			},
		},
		events:   []EventType{SocklatReadSlow, SocklatSendSlow},
		slots:    int(objects.SocketlatencySlotSLOTS),
		defaults: Config{Slow: time.Millisecond, Slow100: 100 * time.Millisecond, Event: 100 * time.Millisecond},
	},
	"virtcmdlatency": {
		spec:    objects.LoadVirtcmdlatency,
		prepare: thresholds,
		hooks: []hook{{
			name: "virtio-net control commands (virtnet_send_command)",
			rungs: []rung{
				{kind: Fentry, programs: []string{"fex_reply", "fen_reply"}},
				{kind: Fentry, programs: []string{"fex_command", "fen_command"}},
				{kind: Kprobe, programs: []string{"krp_reply", "kp_reply"}},
				{kind: Kprobe, programs: []string{"krp_command", "kp_command"}},
			},
		}},
		events:   []EventType{VirtcmdExcute},
		slots:    int(objects.VirtcmdlatencySlotSLOTS),
		defaults: Config{Slow: 10 * time.Millisecond, Slow100: 100 * time.Millisecond},
		note:     "no tracepoint tells of these commands, so it takes a kernel with fentry or kprobes and the driver virtio_net loaded",
	},
	"biolatency": {
		spec:    objects.LoadBiolatency,
		prepare: prepareBiolatency,
		hooks: []hook{{
			name: "block I/O (block_io_start, block_io_done)",
			rungs: []rung{
				{kind: RawTracepoint, programs: []string{"raw_io_done", "raw_io_start"}},
				{kind: RawTracepoint, programs: []string{"raw_rq_complete", "raw_rq_issue", "raw_rq_insert"}},
			},
		}},
		events:   []EventType{Biolat10ms, Biolat100ms},
		slots:    int(objects.BiolatencySlotSLOTS),
		defaults: Config{Slow: 10 * time.Millisecond, Slow100: 100 * time.Millisecond},
	},
	"flow": {
		spec:    objects.LoadFlow,
		prepare: prepareFlow,
		hooks: []hook{
			{
				name: "packets that sockets send (cgroup egress)",
				rungs: []rung{
					{kind: Cgroup, programs: []string{"cgroup_egress"}},
				},
				needed: func(p *Probe, _ *kernelTypes) bool { return p.devices == nil },
			},
			{
				name: "packets that devices transmit (egress)",
				rungs: []rung{
					{kind: TCX, programs: []string{"device_frames", "device_packets"}},
					{kind: Clsact, programs: []string{"device_frames", "device_packets"}},
				},
				needed: func(p *Probe, _ *kernelTypes) bool { return p.devices != nil },
			},
		},
		slots:    int(objects.FlowSlotSLOTS),
		defaults: Config{Flows: 65536},
	},
}

func preparePacketloss(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	return errors.Join(
		prepareLosses(spec),
		set(spec, "with_stack", !p.config.NoStack),
		set(spec, "has_rx_sk", hasReceiver(types)),
	)
}

// reasonArg is where tcp_send_reset has the reason, 0 if it has none.
func reasonArg(types *kernelTypes) uint32 {
	if params, ok := types.tracepoint("tcp_send_reset"); ok && len(params) >= 3 {
		return 2
	}
	return 0
}

// resetsNeedFunctions: the tracepoint leaves out what answers a packet without
// a full socket where it has no reason yet. If the functions are hooked in its
// place, they leave out nothing.
func resetsNeedFunctions(p *Probe, types *kernelTypes) bool {
	return p.hooks[0].Kind == RawTracepoint && reasonArg(types) == 0
}

func prepareTCPReset(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	// Without symbols, or where the function has none, data that come after
	// close() count as a reset received, too.
	var validate [objects.TcpresetSizePARTS]objects.TcpresetPart
	if parts := p.loader.symbols.ranges([]string{"tcp_validate_incoming"}); len(parts) > 0 && len(parts) <= len(validate) {
		for i, part := range parts {
			validate[i].Start, validate[i].End = part[0], part[1]
		}
	} else {
		p.lacks = append(p.lacks, "which side reset a connection when data came after close(): that counts as a reset received, since the kernel's symbols do not tell where tcp_validate_incoming() lies")
	}
	if err := set(spec, "validate", validate); err != nil {
		return err
	}
	return set(spec, "reason_arg", reasonArg(types))
}

func prepareTCPRetrans(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	if err := set(spec, "with_stack", !p.config.NoStack); err != nil {
		return err
	}
	var errorArg uint32
	if params, ok := types.tracepoint("tcp_retransmit_skb"); ok && len(params) >= 3 {
		errorArg = 2
	}
	return set(spec, "error_arg", errorArg)
}

func prepareBiolatency(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	// The queue was dropped in 5.11, and in stable kernels before it.
	params, ok := types.tracepoint("block_rq_issue")
	if err := set(spec, "queue_first", ok && len(params) >= 2); err != nil {
		return err
	}
	return thresholds(p, spec, types)
}

func prepareFlow(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	spec.Maps["flows"].MaxEntries = uint32(p.config.Flows)
	if err := set(spec, "with_ports", p.config.Ports); err != nil {
		return err
	}
	if len(p.config.Devices) == 0 {
		return nil
	}
	d, err := newDevices(p.config.Devices, p.config.Netns)
	if err != nil {
		return err
	}
	if err := set(spec, "device_netns", uint32(d.inode)); err != nil {
		d.close()
		return err
	}
	p.devices = d
	return nil
}
