package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
)

// Docker runs its containers through containerd, in the containerd namespace moby, but
// gives containerd neither their names nor their labels: such a record has only the label
// labelDocker. Docker keeps the name in DATA-ROOT/containers/ID/config.v2.json. Reading
// that file takes fewer privileges than using Docker's socket, which gives control of the
// node. It also works while Docker is stopped or hangs and its containers run.

const (
	// labelDocker is the label of each record that Docker makes in containerd.
	labelDocker = "com.docker/engine.bundle.path"

	// The labels with which cri-dockerd marks a pod's containers.
	labelDockerType    = "io.kubernetes.docker.type"
	labelDockerSandbox = "io.kubernetes.sandbox.id"
	dockerAnnotation   = "annotation."

	dockerDataRoot = "/var/lib/docker" // used if the OCI specification does not show another

	maxDockerFile = 1 << 20
	// dockerPatience limits reading the file, whose file system may hang.
	dockerPatience = time.Second
)

// isLongID reports whether id is 64 hexadecimal digits, as Docker's IDs are. Only such an
// ID is used in a path.
func isLongID(id string) bool { return len(id) == 64 && len(containerID([]byte(id))) == 64 }

// mount is a mount of the OCI specification.
type mount struct {
	Destination string `json:"destination"`
	Source      string `json:"source"`
}

// dockerFile returns the path of Docker's file about a container. The data root is found
// from the files that Docker mounts into each container, which lie beside it; if two
// containers share a network namespace, these files may be the other container's.
func dockerFile(id string, mounts []mount) string {
	root := dockerDataRoot
	for _, m := range mounts {
		switch m.Destination {
		case "/etc/hostname", "/etc/hosts", "/etc/resolv.conf":
			dir := path.Dir(m.Source)
			if above, ok := strings.CutSuffix(path.Dir(dir), "/containers"); ok && path.IsAbs(dir) && isLongID(path.Base(dir)) {
				root = above
			}
		}
	}
	return root + "/containers/" + id + "/config.v2.json"
}

// fileStamp identifies one version of a file.
type fileStamp struct {
	inode    uint64
	size     int64
	modified unix.Timespec
}

// dockerRecord holds the fields used of config.v2.json.
type dockerRecord struct {
	ID     string
	Name   string // begins with a slash
	Config struct{ Labels map[string]string }
}

// dockerFiles reads Docker's files for a watcher and its listings. While a read hangs, no
// other is started.
type dockerFiles struct {
	mu   sync.Mutex
	hung *bounded.Call[dockerAnswer]
}

type dockerAnswer struct {
	path   string
	stamp  fileStamp
	record dockerRecord
}

// do runs f, for dockerPatience at most.
func (d *dockerFiles) do(f func() (dockerAnswer, error)) (dockerAnswer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hung != nil {
		select {
		case <-d.hung.Done:
			d.hung = nil
		default:
			return dockerAnswer{}, d.hung.Hangs("reading Docker's files")
		}
	}
	c := bounded.Begin(f)
	if !c.Over(dockerPatience, nil) {
		d.hung = c
		return dockerAnswer{}, fmt.Errorf("read Docker's files: %w within %v", bounded.ErrNoAnswer, dockerPatience)
	}
	return c.Value, c.Err
}

// name completes containerd's record of a Docker container from Docker's file. If the
// file cannot be read, the container keeps the name made from its ID. root is the root of
// containerd's mount namespace, "" if unknown. The file is read there because a service
// without access to /home, or a container, does not see it elsewhere.
func (d *dockerFiles) name(a *about, root string) error {
	if a.record == "" {
		return nil
	}
	file, id := a.record, a.sandbox
	got, err := d.do(func() (dockerAnswer, error) {
		got, err := readDocker(file)
		if errors.Is(err, os.ErrNotExist) && root != "" {
			if there, err := readDocker(root + file); err == nil {
				return there, nil
			}
		}
		return got, err
	})
	if err != nil {
		return err
	}
	if got.record.ID != id {
		return fmt.Errorf("read %s: it is about container %.64q", got.path, got.record.ID)
	}
	a.record, a.stamp = got.path, got.stamp
	a.applyDocker(&got.record)
	return nil
}

// changed reports whether the file has changed, because containerd has no event for
// docker rename.
func (d *dockerFiles) changed(file string, stamp fileStamp) bool {
	if file == "" {
		return false
	}
	got, err := d.do(func() (dockerAnswer, error) {
		var st unix.Stat_t
		err := unix.Stat(file, &st)
		return dockerAnswer{stamp: stampOf(&st)}, err
	})
	return err == nil && got.stamp != stamp
}

func stampOf(st *unix.Stat_t) fileStamp { return fileStamp{st.Ino, st.Size, st.Mtim} }

func readDocker(file string) (dockerAnswer, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return dockerAnswer{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return dockerAnswer{}, &os.PathError{Op: "stat", Path: file, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxDockerFile {
		return dockerAnswer{}, fmt.Errorf("read %s: it is not a regular file of at most %d bytes", file, maxDockerFile)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxDockerFile))
	if err != nil {
		return dockerAnswer{}, err
	}
	got := dockerAnswer{path: file, stamp: stampOf(&st)}
	if got.record, err = parseDocker(b); err != nil {
		return dockerAnswer{}, fmt.Errorf("read %s: %w", file, err)
	}
	return got, nil
}

// parseDocker decodes config.v2.json. It skips fields of other types.
func parseDocker(b []byte) (r dockerRecord, err error) {
	err = json.Unmarshal(b, &r)
	var other *json.UnmarshalTypeError
	if errors.As(err, &other) {
		err = nil
	}
	return r, err
}

// applyDocker takes the name and the labels from Docker's file. If Kubernetes runs pods
// through Docker (cri-dockerd), the container's name holds the pod's name, and labels
// repeat it. Both must agree: labels may come from an image, names may not.
func (a *about) applyDocker(r *dockerRecord) {
	name := strings.TrimPrefix(r.Name, "/")
	if name == "" {
		return
	}
	l := r.Config.Labels
	a.name, a.labels = name, l
	// k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT, with one more number after a name conflict.
	part := strings.Split(name, "_")
	if len(part) < 6 || len(part) > 7 || part[0] != "k8s" || part[2] == "" ||
		part[2] != l[labelPodName] || part[3] != l[labelNamespace] || part[4] != l[labelUID] {
		return
	}
	switch l[labelDockerType] {
	case "podsandbox":
		a.kind = sandbox
		a.labels = dockerPodLabels(l)
	case "container":
		if !isLongID(l[labelDockerSandbox]) {
			return
		}
		a.kind, a.sandbox, a.labels = member, l[labelDockerSandbox], nil
	default:
		return
	}
	a.name, a.namespace, a.uid = part[2], part[3], part[4]
}

// dockerPodLabels returns the pod's own labels, without those that cri-dockerd added.
func dockerPodLabels(l map[string]string) map[string]string {
	out := make(map[string]string, len(l))
	for k, v := range l {
		if k != labelDockerType && !strings.HasPrefix(k, dockerAnnotation) {
			out[k] = v
		}
	}
	return out
}

// DockerUnnamed reports whether p is a Docker container whose name could not be read.
func DockerUnnamed(p *owner.Pod) bool {
	return p.Labels[labelDocker] != "" && isLongID(p.ID) && !strings.HasPrefix(p.Namespace, "plugins.")
}
