package bpf

import (
	"time"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type slot Virtcmdlatency virtcmdlatency.bpf.c

var virtcmdlatency = definition{
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
	note:     "no tracepoint reports these commands, so it takes a kernel with fentry or kprobes and the driver virtio_net loaded",
}

// VirtcmdExcute is the event type of virtcmdlatency.
const VirtcmdExcute = EventType(objects.SharedEventTypeEVENT_VIRTCMDEXCUTE)

// Counter slots of virtcmdlatency. Commands over 100 ms count in both slots.
const (
	CommandSlow    = int(objects.VirtcmdlatencySlotSLOW)
	CommandSlow100 = int(objects.VirtcmdlatencySlotSLOW100)
)
