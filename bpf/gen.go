package bpf

// The objects and their bindings are committed: a build needs no clang.
// Regenerate after any change below, with the clang that the CI pins.

//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 packetloss packetloss.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 tcpreset tcpreset.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 tcpretrans tcpretrans.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 netSoftirq net_softirq.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 netiftxlatency netiftxlatency.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 kernellatency kernellatency.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 socketlatency socketlatency.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 virtcmdlatency virtcmdlatency.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 biolatency biolatency.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 flow flow.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 openFiles openfiles.bpf.c
//go:generate go tool bpf2go -cc clang -cflags "-O2 -g -Wall -Werror -mcpu=v2" -no-global-types -target amd64,arm64 activity activity.bpf.c
