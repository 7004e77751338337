package pod

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/kernel"
)

// Names of the runtimes that Runtimes finds.
const (
	Docker     = "Docker"
	CRIO       = "CRI-O"
	CRIDockerd = "cri-dockerd"
)

// dockerContainerd is the socket of the containerd that dockerd starts if the machine
// runs no other.
const dockerContainerd = "/run/docker/containerd/containerd.sock"

// runtimeSockets are the usual sockets of runtimes that are not asked.
var runtimeSockets = []Runtime{
	{CRIO, "/run/crio/crio.sock", ""},
	{CRIDockerd, "/run/cri-dockerd.sock", ""},
	{Docker, "/run/docker.sock", ""},
}

// Runtime is a container runtime other than containerd.
type Runtime struct {
	Name   string
	Socket string // the socket that the runtime listens on
	// Containerd is the socket of the containerd that dockerd has started for itself, "" if
	// there is none.
	Containerd string
}

// Runtimes returns the runtimes other than containerd that listen on their usual sockets.
// It connects to none of them: systemd would start a service that waits for a connection.
func Runtimes(procRoot string) []Runtime {
	root := procRoot + "/1/root"
	if _, err := os.Stat(root); err != nil {
		root = "" // without CAP_SYS_PTRACE: what this process sees
	}
	var found []Runtime
	var listening []byte
	listens := func(path string) bool {
		real, ok := socketAt(root, path)
		if !ok {
			return false
		}
		if listening == nil {
			listening = []byte{}
			for _, of := range []string{"1", "self"} {
				if b, err := kernel.ReadFile(unix.AT_FDCWD, procRoot+"/"+of+"/net/unix", nil); err == nil {
					listening = b
					break
				}
			}
		}
		// A program that was killed leaves its socket behind.
		return len(listening) == 0 || listensOn(listening, path) || listensOn(listening, real)
	}
	for _, r := range runtimeSockets {
		if r.Name == Docker && slices.ContainsFunc(found, func(f Runtime) bool { return f.Name == CRIDockerd }) || !listens(r.Socket) {
			continue // cri-dockerd stands for the Docker that it uses
		}
		if r.Name != CRIO && listens(dockerContainerd) {
			r.Containerd = dockerContainerd
		}
		found = append(found, r)
	}
	return found
}

// socketAt reports whether there is a socket at path below root, and returns the target
// of a symbolic link. The package podman-docker makes Docker's socket a link to
// Podman's, which is not Docker's.
func socketAt(root, path string) (real string, ok bool) {
	if to, err := os.Readlink(root + path); err == nil {
		if strings.Contains(to, "podman") || !strings.HasPrefix(to, "/") {
			return "", false
		}
		path = to
	}
	st, err := os.Stat(root + path)
	return path, err == nil && st.Mode()&os.ModeSocket != 0
}

// acceptOn is __SO_ACCEPTON of include/uapi/linux/net.h, the flag of a listening socket.
const acceptOn = 1 << 16

// listensOn reports whether /proc/net/unix (unix_seq_show in net/unix/af_unix.c) has a
// socket that listens on path. /var/run is a link to /run.
func listensOn(list []byte, path string) bool {
	for line := range bytes.Lines(list) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		var flags []byte
		rest := line
		for range 4 { // address, references, protocol, flags
			flags, rest = kernel.Field(rest)
		}
		if n, err := strconv.ParseUint(string(flags), 16, 32); err != nil || n&acceptOn == 0 {
			continue
		}
		for range 3 { // type, state, inode
			_, rest = kernel.Field(rest)
		}
		name := strings.TrimPrefix(string(rest), " ")
		if name == path || name == "/var"+path {
			return true
		}
	}
	return false
}

// Unnamed says why containers of r have no names while the connection to containerd is
// in that state, and what to do. Both texts are "" if the containers have names, or if
// the state itself gives the reason.
func (r Runtime) Unnamed(st Status) (why, do string) {
	listens := fmt.Sprintf("%s listens on %s", r.Name, r.Socket)
	if r.Name == CRIDockerd {
		listens += " and runs pods through Docker"
	}
	switch {
	case r.Name == CRIO:
		return listens + ", and nodeskoop names only containerd's pods: the network namespaces of CRI-O's pods have no series, and their events carry KUBESKOOP_NETNS and no pod",
			"crictl pods lists the pods, and lsns -t net -o NS,PID,COMMAND shows whose network namespace a KUBESKOOP_NETNS is"
	case r.Containerd != "" && st.Socket != "" && st.Socket != r.Containerd:
		return fmt.Sprintf("%s, and Docker's own containerd on %s: nodeskoop follows one containerd, which is that behind %s, so Docker's containers have no names", listens, r.Containerd, st.Socket),
			"pods.sockets = [\"" + r.Containerd + "\"], to name Docker's containers instead"
	case st.Socket == "" && r.Containerd != "":
		return fmt.Sprintf("%s, but Docker's own containerd does not answer nodeskoop on %s: Docker's containers have no names until it does", listens, r.Containerd),
			"systemctl status docker; pods.sockets, if it is set and lacks that path"
	case st.Socket == "" && errors.Is(st.Err, errAbsent):
		return listens + ", but there is no socket of the containerd that Docker uses: Docker's containers have no names",
			"systemctl status docker containerd; if dockerd runs with --containerd, put the path of that option into pods.sockets"
	}
	return "", ""
}

// sayRuntimes logs once per runtime and reason that containers have no names. It looks
// once per every.runtimes, so that runtimes started together with this process have
// time to start.
func (w *watcher) sayRuntimes(now time.Time) {
	if !w.opt.Runtimes || now.Sub(w.looked) < w.every.runtimes {
		return
	}
	w.looked = now
	st := w.x.Status()
	for _, r := range Runtimes(w.opt.ProcRoot) {
		why, do := r.Unnamed(st)
		if why == "" || slices.Contains(w.said, why) {
			continue
		}
		w.said = append(w.said, why)
		w.opt.Log.Warn(why, "hint", do)
	}
}
