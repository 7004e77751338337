package bpf

import "nodeskoop/bpf/internal/objects"

//go:generate internal/objects/bpf2go -type process OpenFiles openfiles.bpf.c

// OpenFiles counts the descriptors of all processes at once. It is not safe for
// use by several goroutines.
type OpenFiles struct {
	iterators[objects.OpenFilesProcess]
	counts map[uint32]FileCount
}

// FileCount is what one process has open.
type FileCount struct {
	Open    int // entries of /proc/PID/fd
	Sockets int // those that link to socket:[inode]
}

// NewOpenFiles loads the iterators. Where the error says that the kernel or the
// process's rights do not allow it, /proc/PID/fd tells the same, but slowly.
func NewOpenFiles(types *KernelTypes) (*OpenFiles, error) {
	f := &OpenFiles{counts: map[uint32]FileCount{}}
	spec, err := objects.LoadOpenFiles()
	if err != nil {
		return nil, err
	}
	if err := f.load(types, spec, func(p *objects.OpenFilesProcess) uint32 { return p.Generation }, objects.OpenFilesProgEachProcess, objects.OpenFilesProgEachFile); err != nil {
		return nil, err
	}
	return f, nil
}

// Read counts again. The map has every process that ran when the call began, by
// its number in the first PID namespace, but for those beyond 16,384. It is the
// caller's until the next call.
func (f *OpenFiles) Read() (map[uint32]FileCount, error) {
	clear(f.counts)
	err := f.each(func(pid uint32, o *objects.OpenFilesProcess) { f.counts[pid] = FileCount{int(o.Open), int(o.Sockets)} })
	if err != nil {
		return nil, err
	}
	return f.counts, nil
}
