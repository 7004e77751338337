package nodes

import (
	"context"
	"strings"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// sandbox is what containerd reported about a pod's sandbox.
type sandbox struct {
	pod            podName
	started, ended time.Time     // ended is zero while the sandbox runs
	load           time.Duration // value of contention at the start
	loadEnd        time.Duration // value of contention at the end
}

// sandboxes records when sandboxes start and end, by containerd's events.
type sandboxes struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu  sync.Mutex
	all map[string]*sandbox
}

// watchSandboxes subscribes to containerd's events. A restart of containerd ends the
// subscription.
func watchSandboxes(socket string) (*sandboxes, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "containerd-namespace", "k8s.io"))
	stream, err := eventsapi.NewEventsClient(conn).Subscribe(ctx, &eventsapi.SubscribeRequest{})
	if err != nil {
		cancel()
		_ = conn.Close()
		return nil, err
	}
	s := &sandboxes{cancel: cancel, done: make(chan struct{}), all: map[string]*sandbox{}}
	records := containersapi.NewContainersClient(conn)
	go func() {
		defer close(s.done)
		defer conn.Close()
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			at := e.GetTimestamp().AsTime()
			switch e.GetTopic() {
			case "/tasks/start":
				var ev apievents.TaskStart
				if proto.Unmarshal(e.GetEvent().GetValue(), &ev) != nil {
					continue
				}
				r, err := records.Get(ctx, &containersapi.GetContainerRequest{ID: ev.ContainerID})
				if err != nil {
					continue
				}
				l := r.GetContainer().GetLabels()
				if l["io.cri-containerd.kind"] == "sandbox" {
					s.mu.Lock()
					s.all[ev.ContainerID] = &sandbox{
						pod: podName{l["io.kubernetes.pod.namespace"], l["io.kubernetes.pod.name"]}, started: at, load: contention(),
					}
					s.mu.Unlock()
				}
			case "/tasks/exit":
				var ev apievents.TaskExit
				if proto.Unmarshal(e.GetEvent().GetValue(), &ev) != nil || ev.ID != ev.ContainerID {
					continue
				}
				s.mu.Lock()
				if b := s.all[ev.ContainerID]; b != nil {
					b.ended, b.loadEnd = at, contention()
				}
				s.mu.Unlock()
			}
		}
	}()
	return s, nil
}

func (s *sandboxes) close() {
	s.cancel()
	<-s.done
}

// of returns the recorded sandboxes of a namespace's pods.
func (s *sandboxes) of(namespace string) (found []sandbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.all {
		if strings.HasPrefix(b.pod[0], namespace) {
			found = append(found, *b)
		}
	}
	return found
}
