package bpf

import "nodeskoop/bpf/internal/objects"

//go:generate internal/objects/bpf2go -type process OpenFiles openfiles.bpf.c

// OpenFiles counts the open descriptors of all processes at once. It is not safe
// for concurrent use.
type OpenFiles struct {
	iterators[objects.OpenFilesProcess]
	counts map[uint32]FileCount
}

// FileCount holds the open descriptors of one process.
type FileCount struct {
	Open    int // entries of /proc/PID/fd
	Sockets int // number of the sockets among them
}

// NewOpenFiles loads the iterators. If the error says that the kernel or the
// process's privileges do not allow it, /proc/PID/fd is the slower alternative.
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

// Read counts the descriptors. The map holds every process that existed when the
// call began, keyed by PID in the initial PID namespace, up to 16,384 of them. The
// map is valid until the next call.
func (f *OpenFiles) Read() (map[uint32]FileCount, error) {
	clear(f.counts)
	err := f.each(func(pid uint32, o *objects.OpenFilesProcess) { f.counts[pid] = FileCount{int(o.Open), int(o.Sockets)} })
	if err != nil {
		return nil, err
	}
	return f.counts, nil
}
