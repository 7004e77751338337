package pods

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// SandboxRuntime is the PodSpec.Runtime of pods whose sandbox is not a container, as
// with Kata and Kuasar. A shim with containerd's sandbox API runs a plain process in
// the pod's network namespace, in place of a virtual machine. Such a pod has no
// containers in these tests.
const SandboxRuntime = "sandboxed"

// shimName is the file name by which a test binary serves as the shim. It begins like
// every shim's name, so that the sweeper ends it, too.
const shimName = "containerd-shim-sandboxed-v1"

func init() {
	if filepath.Base(os.Args[0]) == shimName {
		if err := beShim(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// beShim is the shim's main function. containerd calls it with "start" in the sandbox's
// folder, expects the address of a server in its output, and calls it with "delete" if the
// server is gone.
func beShim(args []string) error {
	id, action := "", ""
	for i, a := range args {
		switch {
		case a == "-id" && i+1 < len(args):
			id = args[i+1]
		case !strings.HasPrefix(a, "-"):
			action = a
		}
	}
	switch {
	case args[0] == "serve":
		return serveShim()
	case args[0] == "hold":
		return holdSandbox(args[1])
	case action == "start" && id != "":
		return startShim(id)
	case action == "delete":
		return nil // the empty answer means exit code 0
	}
	return fmt.Errorf("the shim does not know %q", args)
}

// startShim starts the server. Its socket is in the instance's folder, whose path is
// short enough for a socket.
func startShim(id string) error {
	path := filepath.Join(filepath.Dir(os.Args[0]), id[:12]+".sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		return err
	}
	// Do not inherit standard output, which containerd reads to its end.
	cmd := exec.Command(os.Args[0], "serve")
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	_, err = fmt.Printf(`{"version": 2, "address": "unix://%s", "protocol": "ttrpc"}`, path)
	return err
}

func serveShim() error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	s := &shim{ended: make(chan struct{}), shutdown: make(chan struct{})}
	sandboxapi.RegisterTTRPCSandboxService(server, s)
	// After a restart containerd asks for the sandbox's task.
	server.RegisterService("containerd.task.v2.Task", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Connect": func(context.Context, func(any) error) (any, error) {
			return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: uint32(s.pid())}, nil
		},
	}})
	go func() {
		<-s.shutdown
		time.Sleep(100 * time.Millisecond) // let the answer be sent
		_ = server.Close()
	}()
	if err := server.Serve(context.Background(), l); !errors.Is(err, ttrpc.ErrServerClosed) {
		return err
	}
	return nil
}

// holdSandbox is the sandbox: a process in the pod's network namespace.
func holdSandbox(netns string) error {
	runtime.LockOSThread() // an init function has the main thread, which procfs shows
	if netns != "" {
		fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", netns, err)
		}
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", netns, err)
		}
		_ = unix.Close(fd)
	}
	fmt.Println("ready")
	for {
		_ = unix.Pause()
	}
}

// shim is the server of one sandbox.
type shim struct {
	mu            sync.Mutex
	id, netns     string
	sandbox       *exec.Cmd
	begun, exited time.Time
	ended         chan struct{} // closed at the sandbox's end
	shutdown      chan struct{}
	alreadyDone   sync.Once
}

func (s *shim) pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sandbox == nil || !s.exited.IsZero() {
		return 0
	}
	return s.sandbox.Process.Pid
}

func (s *shim) CreateSandbox(_ context.Context, r *sandboxapi.CreateSandboxRequest) (*sandboxapi.CreateSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.netns = r.SandboxID, r.NetnsPath
	return &sandboxapi.CreateSandboxResponse{}, nil
}

func (s *shim) StartSandbox(context.Context, *sandboxapi.StartSandboxRequest) (*sandboxapi.StartSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cmd := exec.Command(os.Args[0], "hold", s.netns)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	// The server answers once it is in the namespace.
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		return nil, errors.Join(fmt.Errorf("the sandbox does not get ready: %w", err), cmd.Wait())
	}
	s.sandbox, s.begun = cmd, time.Now()
	go func() {
		_ = cmd.Wait()
		s.mu.Lock()
		s.exited = time.Now()
		s.mu.Unlock()
		close(s.ended)
	}()
	return &sandboxapi.StartSandboxResponse{Pid: uint32(cmd.Process.Pid), CreatedAt: timestamppb.New(s.begun)}, nil
}

func (s *shim) StopSandbox(context.Context, *sandboxapi.StopSandboxRequest) (*sandboxapi.StopSandboxResponse, error) {
	s.mu.Lock()
	cmd := s.sandbox
	s.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill()
		<-s.ended
	}
	return &sandboxapi.StopSandboxResponse{}, nil
}

func (s *shim) WaitSandbox(ctx context.Context, _ *sandboxapi.WaitSandboxRequest) (*sandboxapi.WaitSandboxResponse, error) {
	select {
	case <-s.ended:
		return &sandboxapi.WaitSandboxResponse{ExitedAt: timestamppb.New(s.exited)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *shim) SandboxStatus(context.Context, *sandboxapi.SandboxStatusRequest) (*sandboxapi.SandboxStatusResponse, error) {
	pid := s.pid()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &sandboxapi.SandboxStatusResponse{SandboxID: s.id, Pid: uint32(pid), State: "SANDBOX_READY", CreatedAt: timestamppb.New(s.begun)}
	if pid == 0 {
		r.State, r.ExitedAt = "SANDBOX_NOTREADY", timestamppb.New(s.exited)
	}
	return r, nil
}

func (s *shim) ShutdownSandbox(ctx context.Context, _ *sandboxapi.ShutdownSandboxRequest) (*sandboxapi.ShutdownSandboxResponse, error) {
	_, err := s.StopSandbox(ctx, nil)
	s.alreadyDone.Do(func() { close(s.shutdown) })
	return &sandboxapi.ShutdownSandboxResponse{}, err
}

func (s *shim) Platform(context.Context, *sandboxapi.PlatformRequest) (*sandboxapi.PlatformResponse, error) {
	return &sandboxapi.PlatformResponse{Platform: &types.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}}, nil
}

func (s *shim) PingSandbox(context.Context, *sandboxapi.PingRequest) (*sandboxapi.PingResponse, error) {
	return &sandboxapi.PingResponse{}, nil
}

func (s *shim) SandboxMetrics(context.Context, *sandboxapi.SandboxMetricsRequest) (*sandboxapi.SandboxMetricsResponse, error) {
	return &sandboxapi.SandboxMetricsResponse{}, nil
}

func (s *shim) UpdateSandbox(context.Context, *sandboxapi.UpdateSandboxRequest) (*sandboxapi.UpdateSandboxResponse, error) {
	return &sandboxapi.UpdateSandboxResponse{}, nil
}
