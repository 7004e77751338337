package pod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// hierarchy is one mounted control group tree.
type hierarchy struct {
	v2 bool
	// options are the superblock's options: the controllers of a v1 tree, or
	// name=X.
	options string
	// root is the mounted part of the tree, mount the mount point.
	root, mount string
}

// has reports whether h is the v1 tree of a controller, or of name=X.
func (h *hierarchy) has(controller string) bool {
	for o := range strings.SplitSeq(h.options, ",") {
		if o == controller {
			return true
		}
	}
	return false
}

// dir returns the directory of a control group, whose path is as in /proc/PID/cgroup. It
// returns false if the path is not below the mount: ".." leads out of this process's cgroup
// namespace.
func (h *hierarchy) dir(path string) (string, bool) {
	rest := path
	if h.root != "/" {
		var ok bool
		if rest, ok = strings.CutPrefix(path, h.root); !ok {
			return "", false
		}
	}
	if rest != "" && rest[0] != '/' || strings.Contains(path+"/", "/../") {
		return "", false
	}
	return h.mount + strings.TrimSuffix(rest, "/"), true
}

// parseMountinfo finds the control group trees in /proc/PID/mountinfo
// (Documentation/filesystems/proc.rst, section 3.5). If a tree is mounted several times,
// the mount with the largest part of it comes first.
func parseMountinfo(data []byte) []hierarchy {
	var list []hierarchy
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		mount, super, ok := bytes.Cut(line, []byte(" - "))
		if !ok || !bytes.HasPrefix(super, []byte("cgroup")) {
			continue
		}
		m, s := bytes.Fields(mount), bytes.Fields(super)
		if len(m) < 5 || len(s) < 3 {
			continue
		}
		h := hierarchy{options: string(s[2]), root: unescape(m[3]), mount: strings.TrimSuffix(unescape(m[4]), "/")}
		switch string(s[0]) {
		case "cgroup":
		case "cgroup2":
			h.v2 = true
		default:
			continue
		}
		if !strings.HasPrefix(h.root, "/") || !strings.HasPrefix(h.mount, "/") {
			continue
		}
		list = append(list, h)
	}
	slices.SortStableFunc(list, func(a, b hierarchy) int { return len(a.root) - len(b.root) })
	return list
}

// unescape undoes the kernel's mangle(): \ooo for space, tab, newline and backslash.
func unescape(b []byte) string {
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+3 < len(b) {
			if c, err := strconv.ParseUint(string(b[i+1:i+4]), 8, 8); err == nil {
				out = append(out, byte(c))
				i += 3
				continue
			}
		}
		out = append(out, b[i])
	}
	return string(out)
}

// nextCgroup parses the next valid line of /proc/PID/cgroup (cgroups(7)): the controllers,
// empty for v2, and the path. At the end ok is false.
func nextCgroup(data []byte) (controllers, path, rest []byte, ok bool) {
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		id, line, ok := bytes.Cut(line, []byte{':'})
		if !ok || len(id) == 0 {
			continue
		}
		controllers, path, ok = bytes.Cut(line, []byte{':'})
		if !ok || len(path) == 0 || path[0] != '/' {
			continue
		}
		return controllers, bytes.TrimSuffix(path, []byte(" (deleted)")), data, true
	}
	return nil, nil, nil, false
}

// cgroups are the control groups that belong to one container.
type cgroups struct {
	// dir is the directory that lists its processes; "" if there is none.
	dir string
	// paths are the distinct paths in /proc/PID/cgroup.
	paths []string
	// id is the inode number of its v2 control group; 0 if it has none of its own.
	id uint64
	// hidden: there are paths, but none is below a mount.
	hidden bool
}

// preferred orders the v1 trees by how reliably they list the processes. Runtimes join all
// trees, and rarely leave out the first of these.
var preferred = []string{"pids", "memory", "name=systemd", "cpu", "devices", "freezer"}

// findCgroups finds a container's control groups from /proc/PID/cgroup of its first
// process, which may have moved to a group below: systemd does, and docker in a pod. The
// container's own group is the one that its record names (groups), else the one with the
// container's ID in its name, else one that its shim (file outer) is not in.
func findCgroups(trees []hierarchy, file, outer []byte, id string, groups ...string) cgroups {
	type own struct {
		controllers, path string
		named             bool
	}
	var owns []own
	outside := map[string]string{}
	for c, p, rest, ok := nextCgroup(outer); ok; c, p, rest, ok = nextCgroup(rest) {
		outside[string(c)] = string(p)
	}
	for c, p, rest, ok := nextCgroup(file); ok; c, p, rest, ok = nextCgroup(rest) {
		o := own{controllers: string(c), path: string(p)}
		if end := ownGroup(o.path, id, groups); end > 0 {
			o.path, o.named = o.path[:end], true
		}
		if o.named || o.path != "/" && len(outer) > 0 && outside[o.controllers] != o.path {
			owns = append(owns, o)
		}
	}
	if slices.ContainsFunc(owns, func(o own) bool { return o.named }) {
		owns = slices.DeleteFunc(owns, func(o own) bool { return !o.named })
	}
	var found cgroups
	best := len(preferred) + 1
	found.hidden = len(owns) > 0
	for _, o := range owns {
		if !slices.Contains(found.paths, o.path) {
			found.paths = append(found.paths, o.path)
		}
		for i := range trees {
			h := &trees[i]
			first, _, _ := strings.Cut(o.controllers, ",")
			if h.v2 != (o.controllers == "") || !h.v2 && !h.has(first) {
				continue
			}
			dir, ok := h.dir(o.path)
			if !ok {
				continue
			}
			found.hidden = false
			var st unix.Stat_t
			if unix.Stat(dir, &st) != nil {
				continue
			}
			rank := 0
			if h.v2 {
				found.id = st.Ino
			} else if rank = slices.IndexFunc(preferred, h.has) + 1; rank == 0 {
				rank = len(preferred)
			}
			if rank < best {
				best, found.dir = rank, dir
			}
			break
		}
	}
	return found
}

// ownGroup returns the length of the prefix of path that is the container's own control
// group: up to the outermost of groups, at any depth, or up to the name with the
// container's ID. It returns 0 if there is neither.
func ownGroup(path, id string, groups []string) int {
	end := 0
	for _, g := range groups {
		for from := 0; ; {
			i := strings.Index(path[from:], g)
			if i < 0 {
				break
			}
			from += i + len(g)
			if from == len(path) || path[from] == '/' {
				if end == 0 || from < end {
					end = from
				}
				break
			}
		}
	}
	if end > 0 {
		return end
	}
	long := string(containerID([]byte(id))) == id
	for from := 1; from <= len(path); {
		to := len(path)
		if i := strings.IndexByte(path[from:], '/'); i >= 0 {
			to = from + i
		}
		switch name := path[from:to]; {
		case long && string(containerID([]byte(name))) == id:
			return to
		case !long && id != "" && (name == id || strings.HasSuffix(name, ":"+id) || strings.HasSuffix(name, "-"+id+".scope")):
			// Continue: an outer group, such as containerd's namespace, may have the same
			// name.
			end = to
		}
		from = to + 1
	}
	return end
}

// specGroups returns the control group that a container's OCI specification requests
// (linux.cgroupsPath), as the paths that runc makes of it: the path itself, or that of a
// systemd unit. They are relative to the root of the tree that runc sees.
func specGroups(path string) []string {
	if path == "" || strings.Contains(path+"/", "/../") || strings.HasPrefix(path, "../") {
		return nil
	}
	var groups []string
	if slice, rest, ok := strings.Cut(path, ":"); ok && !strings.Contains(slice, "/") {
		if prefix, name, ok := strings.Cut(rest, ":"); ok && name != "" && !strings.Contains(rest, "/") {
			if slice == "" {
				slice = "system.slice"
			}
			switch {
			case strings.HasSuffix(name, ".slice"):
			case prefix == "":
				name += ".scope"
			default:
				name = prefix + "-" + name + ".scope"
			}
			if dir, ok := expandSlice(slice); ok {
				groups = append(groups, dir+"/"+name)
			}
		}
	}
	if path = "/" + strings.Trim(path, "/"); path != "/" {
		groups = append(groups, path)
	}
	return groups
}

// expandSlice returns the path of a slice: a-b.slice is in a.slice (systemd.slice(5)).
func expandSlice(slice string) (string, bool) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" {
		return "", false
	}
	if name == "-" {
		return "", true
	}
	var path string
	for i := range len(name) {
		if name[i] == '-' {
			path += "/" + name[:i] + ".slice"
		}
	}
	return path + "/" + slice, true
}

// podGroup returns the pod's control group above a container's, recognised by the pod's UID
// in its name; "" if there is none.
func podGroup(path, uid string) string {
	i := strings.LastIndexByte(path, '/')
	if i <= 0 || uid == "" {
		return ""
	}
	path = path[:i]
	var buf [64]byte
	if string(podUID(buf[:0], []byte(path[strings.LastIndexByte(path, '/')+1:]))) != uid {
		return ""
	}
	return path
}

// containerID finds a container's ID in the name of its control group: the last run of
// exactly 64 hexadecimal digits. Runtimes name the group "ID",
// "cri-containerd-ID.scope" or "SLICE:cri-containerd:ID".
func containerID(name []byte) []byte {
	const length = 64
	for end := len(name); end >= length; {
		start := end
		for start > 0 && isHex(name[start-1]) {
			start--
		}
		if end-start == length {
			return name[start:end]
		}
		end = start
		for end > 0 && !isHex(name[end-1]) {
			end--
		}
	}
	return nil
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }

// podUID finds a pod's UID in the name of its control group and appends it to buf. The name
// is "podUID", or "kubepods-besteffort-podUID.slice" with _ in place of -.
func podUID(buf, name []byte) []byte {
	name, _, slice := bytes.Cut(name, []byte(".slice"))
	if slice {
		i := bytes.LastIndex(name, []byte("-pod"))
		if i < 0 {
			return nil
		}
		name = name[i+1:]
	}
	uid, ok := bytes.CutPrefix(name, []byte("pod"))
	if !ok || len(uid) == 0 {
		return nil
	}
	for _, c := range uid {
		if slice && c == '_' {
			c = '-'
		}
		buf = append(buf, c)
	}
	return buf
}

var procsBuffers = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

// appendProcesses appends the processes of a control group and its descendants. A group
// that has been removed has none.
func appendProcesses(dir string, pids []int) ([]int, error) {
	fd, err := kernel.Open(unix.AT_FDCWD, dir, unix.O_DIRECTORY)
	if err == unix.ENOENT || err == unix.ENODEV {
		return pids, nil
	}
	if err != nil {
		return pids, &fs.PathError{Op: "open the control group", Path: dir, Err: err}
	}
	buf := procsBuffers.Get().(*[]byte)
	pids, err = appendProcs(fd, pids, buf)
	procsBuffers.Put(buf)
	if err != nil {
		return pids, fmt.Errorf("list the processes of control group %s: %w", dir, err)
	}
	return pids, nil
}

// appendProcs is appendProcesses of the open directory fd, which it closes. Its recursion
// is as deep as groups are nested, which only cgroup.max.depth limits.
func appendProcs(fd int, pids []int, buf *[]byte) ([]int, error) {
	defer unix.Close(fd)
	data, err := kernel.ReadFile(fd, "cgroup.procs", (*buf)[:0])
	*buf = data[:cap(data)]
	switch err {
	case nil:
		pids = appendNumbers(pids, data)
	case unix.ENOENT, unix.ENODEV:
		return pids, nil
	case unix.EOPNOTSUPP:
		// A threaded group: the group above lists its processes.
	default:
		return pids, fmt.Errorf("read cgroup.procs: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pids, err
	}
	if st.Nlink == 2 {
		return pids, nil // in kernfs, 2 links mean no child groups
	}
	names, err := subdirectories(fd)
	if err != nil {
		return pids, err
	}
	for _, name := range names {
		sub, err := kernel.Open(fd, name, unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err == unix.ENOENT || err == unix.ENODEV {
			continue
		}
		if err != nil {
			return pids, fmt.Errorf("open %s: %w", name, err)
		}
		if pids, err = appendProcs(sub, pids, buf); err != nil {
			return pids, fmt.Errorf("%s: %w", name, err)
		}
	}
	return pids, nil
}

// appendNumbers appends the positive numbers of cgroup.procs, one per line. A process in
// another PID namespace is shown as 0.
func appendNumbers(pids []int, data []byte) []int {
	n := 0
	for _, c := range data {
		switch {
		case '0' <= c && c <= '9' && n < 1<<30:
			n = n*10 + int(c-'0')
		default:
			if n > 0 {
				pids = append(pids, n)
			}
			n = 0
		}
	}
	if n > 0 {
		pids = append(pids, n)
	}
	return pids
}

func subdirectories(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var names []string
	err := kernel.Entries(fd, make([]byte, 8192), func(name string, typ byte) error {
		if typ == unix.DT_DIR {
			names = append(names, strings.Clone(name))
		}
		return nil
	})
	if err == unix.ENOENT {
		err = nil // the group was removed
	}
	return names, err
}

// fileIDKernfs is FILEID_KERNFS: a file handle that holds the ID of a kernfs node.
const fileIDKernfs = 0xfe

// cgroupPath returns the path, as in /proc/PID/cgroup, of the v2 control group with the
// inode number id.
func cgroupPath(tree *hierarchy, id uint64, buf []byte) ([]byte, error) {
	root, err := kernel.Open(unix.AT_FDCWD, tree.mount, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	fd, err := unix.OpenByHandleAt(root, unix.NewFileHandle(fileIDKernfs, binary.NativeEndian.AppendUint64(nil, id)), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n, err := unix.Readlink("/proc/self/fd/"+strconv.Itoa(fd), buf)
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(buf[:n], []byte(tree.mount))
	if !ok || len(rest) > 0 && rest[0] != '/' {
		return nil, errors.New("not below the mount")
	}
	if tree.root != "/" {
		rest = append([]byte(tree.root), rest...)
	}
	return rest, nil
}
