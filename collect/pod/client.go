package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	events "github.com/containerd/containerd/api/services/events/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxes "github.com/containerd/containerd/api/services/sandbox/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	version "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	answerTimeout = 2 * time.Second  // limit for one record, or the version
	taskTimeout   = time.Second      // limit for one task, since containerd has to ask its shim
	listTimeout   = 20 * time.Second // limit for all records of a namespace
	maxMessage    = 16 << 20         // the limit of containerd's own clients
)

// client talks to one containerd.
type client struct {
	conn *grpc.ClientConn
	peer *atomic.Int64 // PID of the process that listens
}

// connect connects to the containerd behind socket and asks for its version.
func connect(ctx context.Context, socket string) (*client, string, error) {
	c := &client{peer: new(atomic.Int64)}
	var err error
	c.conn, err = grpc.NewClient("passthrough:///containerd",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return c.dial(ctx, socket)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithAuthority("localhost"),
	)
	if err != nil {
		return nil, "", fmt.Errorf("connect to %s: %w", socket, err)
	}
	v, err := c.version(ctx)
	if err != nil {
		_ = c.conn.Close()
		return nil, "", fmt.Errorf("ask containerd behind %s for its version: %w", socket, plainError(err))
	}
	return c, v, nil
}

// dial records which process listens. Its mount namespace gives access to containers'
// files that this process cannot see.
func (c *client) dial(ctx context.Context, path string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if raw, err := conn.(*net.UnixConn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				c.peer.Store(int64(cred.Pid))
			}
		})
	}
	return conn, nil
}

// plainError strips gRPC's decoration from an error.
func plainError(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch s.Code() {
	case codes.DeadlineExceeded:
		return errors.New("no answer in time: it hangs, or the machine is overloaded (systemctl status containerd)")
	case codes.Unavailable:
		return fmt.Errorf("%s (is containerd running? systemctl status containerd)", s.Message())
	}
	return fmt.Errorf("%s (%v)", s.Message(), s.Code())
}

func in(ctx context.Context, namespace string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
}

func (c *client) version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	r, err := version.NewVersionClient(c.conn).Version(ctx, &emptypb.Empty{})
	return r.GetVersion(), err
}

func (c *client) namespaces(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	r, err := namespaces.NewNamespacesClient(c.conn).List(ctx, &namespaces.ListNamespacesRequest{})
	var names []string
	for _, n := range r.GetNamespaces() {
		names = append(names, n.GetName())
	}
	return names, err
}

// containers calls f with each container of a namespace. Where containerd offers a stream,
// only one record is in memory at a time.
func (c *client) containers(ctx context.Context, namespace string, f func(*containers.Container)) error {
	ctx, cancel := context.WithTimeout(in(ctx, namespace), listTimeout)
	defer cancel()
	api := containers.NewContainersClient(c.conn)
	s, err := api.ListStream(ctx, &containers.ListContainersRequest{})
	for err == nil {
		var m *containers.ListContainerMessage
		if m, err = s.Recv(); err == nil {
			f(m.GetContainer())
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	if status.Code(err) != codes.Unimplemented {
		return err
	}
	r, err := api.List(ctx, &containers.ListContainersRequest{})
	for _, k := range r.GetContainers() {
		f(k)
	}
	return err
}

func (c *client) container(ctx context.Context, k key) (*containers.Container, error) {
	ctx, cancel := context.WithTimeout(in(ctx, k.ns), answerTimeout)
	defer cancel()
	r, err := containers.NewContainersClient(c.conn).Get(ctx, &containers.GetContainerRequest{ID: k.id})
	return r.GetContainer(), err
}

// sandboxes lists the sandboxes in the store that one of the filters matches; without
// filters, all. containerd before 2.0 has no store.
func (c *client) sandboxes(ctx context.Context, namespace string, filters ...string) ([]*types.Sandbox, error) {
	ctx, cancel := context.WithTimeout(in(ctx, namespace), listTimeout)
	defer cancel()
	r, err := sandboxes.NewStoreClient(c.conn).List(ctx, &sandboxes.StoreListRequest{Filters: filters})
	if status.Code(err) == codes.Unimplemented {
		return nil, nil
	}
	return r.GetList(), err
}

// newSandboxes lists the sandboxes in the stores, except known ones, which are given by
// containerd namespace. The next complete listing covers what could not be listed.
func (c *client) newSandboxes(ctx context.Context, known map[string][]string) map[key]*types.Sandbox {
	found := map[key]*types.Sandbox{}
	for ns, ids := range known {
		others := make([]string, len(ids))
		for i, id := range ids {
			others[i] = "id!=" + strconv.Quote(id)
		}
		var filters []string // without filters the store lists all sandboxes
		if len(others) > 0 {
			filters = []string{strings.Join(others, ",")}
		}
		list, err := c.sandboxes(ctx, ns, filters...)
		if err != nil {
			continue
		}
		for _, s := range list {
			found[key{ns, s.GetSandboxID()}] = s
		}
	}
	return found
}

// eachSandbox asks for each sandbox separately. It skips sandboxes that are not in the
// store or too large for a message.
func (c *client) eachSandbox(ctx context.Context, namespace string, ids map[string]bool) ([]*types.Sandbox, error) {
	var list []*types.Sandbox
	for id := range ids {
		s, err := c.sandbox(ctx, key{namespace, id})
		switch status.Code(err) {
		case codes.OK:
			list = append(list, s)
		case codes.NotFound, codes.ResourceExhausted:
		default:
			return nil, err
		}
	}
	return list, nil
}

func (c *client) sandbox(ctx context.Context, k key) (*types.Sandbox, error) {
	ctx, cancel := context.WithTimeout(in(ctx, k.ns), answerTimeout)
	defer cancel()
	r, err := sandboxes.NewStoreClient(c.conn).Get(ctx, &sandboxes.StoreGetRequest{SandboxID: k.id})
	return r.GetSandbox(), err
}

// task returns the PID of a container's first process; 0 if none runs. It fails if the
// shim does not answer, since it is then unknown whether the container runs.
func (c *client) task(ctx context.Context, k key) (pid int, err error) {
	ctx, cancel := context.WithTimeout(in(ctx, k.ns), taskTimeout)
	defer cancel()
	r, err := tasks.NewTasksClient(c.conn).Get(ctx, &tasks.GetRequest{ContainerID: k.id})
	if status.Code(err) == codes.NotFound {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	switch p := r.GetProcess(); p.GetStatus() {
	case task.Status_CREATED, task.Status_RUNNING, task.Status_PAUSED, task.Status_PAUSING:
		return int(p.GetPid()), nil
	case task.Status_STOPPED:
		return 0, nil
	default:
		return 0, fmt.Errorf("its state is %v", p.GetStatus())
	}
}

// topics are the events about the start and end of containers, tasks and
// sandboxes.
const topics = `topic~="^/?(tasks/(create|start|exit|delete)|containers/(create|update|delete)|sandboxes/.*)$"`

func (c *client) subscribe(ctx context.Context, follow []string) (grpc.ServerStreamingClient[types.Envelope], error) {
	filters := []string{topics}
	if follow != nil {
		filters = nil
		for _, n := range follow {
			filters = append(filters, "namespace=="+strconv.Quote(n)+","+topics)
		}
	}
	return events.NewEventsClient(c.conn).Subscribe(ctx, &events.SubscribeRequest{Filters: filters})
}
