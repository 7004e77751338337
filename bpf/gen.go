package bpf

//go:generate internal/objects/bpf2go -type counter -type event -type event_account -type event_bucket -type event_limit -type event_stack -type event_type -type reason -type room -type share -type tuple Shared shared.bpf.c
//go:generate internal/objects/bpf2go -type code_bit -type drop -type drop_key -type rule -type size -type slot -type step -type steps -type trait -type why Packetloss packetloss.bpf.c
//go:generate internal/objects/bpf2go -type part -type size -type slot Tcpreset tcpreset.bpf.c
//go:generate internal/objects/bpf2go -type kind -type slot Tcpretrans tcpretrans.bpf.c
//go:generate internal/objects/bpf2go -type slot -type vector NetSoftirq net_softirq.bpf.c
//go:generate internal/objects/bpf2go -type slot Netiftxlatency netiftxlatency.bpf.c
//go:generate internal/objects/bpf2go -type point -type slot Kernellatency kernellatency.bpf.c
//go:generate internal/objects/bpf2go -type slot Socketlatency socketlatency.bpf.c
//go:generate internal/objects/bpf2go -type slot Virtcmdlatency virtcmdlatency.bpf.c
//go:generate internal/objects/bpf2go -type issued -type slot Biolatency biolatency.bpf.c
//go:generate internal/objects/bpf2go -type flow -type flow_key -type slot Flow flow.bpf.c
//go:generate internal/objects/bpf2go -type process OpenFiles openfiles.bpf.c
//go:generate internal/objects/bpf2go -type process -type state Activity activity.bpf.c
