package bpf

import (
	"time"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type issued -type slot Biolatency biolatency.bpf.c

var biolatency = definition{
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
}

// The types of its events.
const (
	Biolat10ms  = EventType(objects.SharedEventTypeEVENT_BIOLAT_10MS)
	Biolat100ms = EventType(objects.SharedEventTypeEVENT_BIOLAT_100MS)
)

func prepareBiolatency(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	// The queue was dropped in 5.11, and in stable kernels before it.
	params, ok := types.tracepoint("block_rq_issue")
	if err := set(spec, objects.BiolatencyVarQueueFirst, ok && len(params) >= 2); err != nil {
		return err
	}
	return thresholds(p, spec, types)
}

// Slots of the counters of biolatency. What is over 100 ms is in both.
const (
	DiskSlow    = int(objects.BiolatencySlotSLOW)
	DiskSlow100 = int(objects.BiolatencySlotSLOW100)
)
