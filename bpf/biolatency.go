package bpf

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

//go:generate internal/objects/bpf2go -type operation_histograms -type disk_name -type issued -type operation -type point -type slot -type wait Biolatency biolatency.bpf.c

var biolatency = definition{
	spec:    objects.LoadBiolatency,
	prepare: prepareBiolatency,
	hooks: []hook{{
		name: "block I/O (block_io_start, block_io_done)",
		rungs: []rung{
			{kind: RawTracepoint, programs: []string{"raw_io_done", "raw_io_complete", "raw_io_issue", "raw_io_start"}},
			{kind: RawTracepoint, programs: []string{"raw_rq_complete", "raw_rq_issue", "raw_rq_insert"}},
		},
	}},
	events:   []EventType{Biolat10ms, Biolat100ms},
	slots:    int(objects.BiolatencySlotSLOTS),
	defaults: Config{Slow: 10 * time.Millisecond, Slow100: 100 * time.Millisecond},
}

// Event types of biolatency.
const (
	Biolat10ms  = EventType(objects.SharedEventTypeEVENT_BIOLAT_10MS)
	Biolat100ms = EventType(objects.SharedEventTypeEVENT_BIOLAT_100MS)
)

func prepareBiolatency(p *Probe, spec *ebpf.CollectionSpec, types *kernelTypes) error {
	// Linux 5.11 and stable kernels before it dropped the parameter for the queue.
	params, ok := types.tracepoint("block_rq_issue")
	if err := set(spec, objects.BiolatencyVarQueueFirst, ok && len(params) >= 2); err != nil {
		return err
	}
	if err := set(spec, objects.BiolatencyVarTellBackground, p.config.Background); err != nil {
		return err
	}
	if !p.config.ownIO {
		pid, err := p.loader.ownPID()
		if err != nil {
			return fmt.Errorf("leave its own I/O out of events: %w", err)
		}
		if err := set(spec, objects.BiolatencyVarOwnPid, pid); err != nil {
			return err
		}
	}
	return thresholds(p, spec, types)
}

// Counter slots of biolatency. I/O over 100 ms counts in both slots.
const (
	DiskSlow    = int(objects.BiolatencySlotSLOW)
	DiskSlow100 = int(objects.BiolatencySlotSLOW100)
)

// Points of biolatency's events: from the start of an I/O until the driver takes
// it, and from there to completion. Both are 0 for an I/O with flushes before or
// after it. The first is 0 if the kernel does not show the start.
const (
	PointQueue  = int(objects.BiolatencyPointQUEUE)
	PointDevice = int(objects.BiolatencyPointDEVICE)
)

// Operations in Event.Detail of biolatency, under the mask BlockOperation. The
// numbers of other operations differ between kernels. BlockBackground marks I/O
// that no process waits for.
const (
	BlockRead        = uint32(objects.BiolatencyOperationREAD)
	BlockWrite       = uint32(objects.BiolatencyOperationWRITE)
	BlockFlush       = uint32(objects.BiolatencyOperationFLUSH)
	BlockDiscard     = uint32(objects.BiolatencyOperationDISCARD)
	BlockSecureErase = uint32(objects.BiolatencyOperationSECURE_ERASE)
	BlockWriteZeroes = uint32(objects.BiolatencyOperationWRITE_ZEROES)
	BlockOperation   = uint32(objects.BiolatencyOperationOPERATION)
	BlockBackground  = uint32(objects.BiolatencyOperationBACKGROUND)
	// BlockOther stands in histograms for all operations without a number below it.
	BlockOther = BlockDiscard + 1
)
