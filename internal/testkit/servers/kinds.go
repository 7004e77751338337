package servers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// Connections is the number of connections that a load generator keeps busy.
const Connections = 16

// Kinds are the measured servers. Each answers on one CPU: nginx with one process,
// Redis and memcached with one thread, PostgreSQL with one process per connection.
// Their configuration is that of Debian's packages, but they write no request logs and
// do not wait for a disk.
var Kinds = []Kind{
	{Name: "nginx", programs: []string{"nginx", "wrk"}, start: startNginx, Workloads: []Workload{
		{"100 B", http("/100")},
		{"10 kB", http("/10k")},
		{"1 MB", http("/1m")},
		{"100 B, new connection", http("/100", "-H", "Connection: close")},
	}},
	{Name: "Redis", programs: []string{"redis-server", "redis-benchmark"}, start: startRedis, Workloads: []Workload{
		{"GET", redis("get", 1)},
		{"SET", redis("set", 1)},
		{"GET, 16 in a pipeline", redis("get", 16)},
		{"SET, 16 in a pipeline", redis("set", 16)},
	}},
	{Name: "PostgreSQL", start: startPostgres, Workloads: []Workload{
		{"SELECT", pgbench("--builtin=select-only")},
		{"UPDATE", pgbench("--builtin=simple-update")},
	}},
	{Name: "memcached", programs: []string{"memcached"}, start: startMemcached, Workloads: []Workload{
		{"get", memcached("get key\r\n", "VALUE key 0 100\r\n"+hundred+"\r\nEND\r\n")},
		{"set", memcached("set key 0 0 100\r\n"+hundred+"\r\n", "STORED\r\n")},
	}},
}

// hundred is a value of 100 bytes.
var hundred = strings.Repeat("x", 100)

func sysID(host int) syscall.SysProcIDMap {
	return syscall.SysProcIDMap{ContainerID: 1000, HostID: host, Size: 1}
}

const nginxConf = `daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000000;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	server { listen 80; root .; }
}
`

func startNginx(s *Server) {
	s.t.Helper()
	files := map[string][]byte{"nginx.conf": []byte(nginxConf)}
	for name, size := range map[string]int{"100": 100, "10k": 10_000, "1m": 1_000_000} {
		files[name] = make([]byte, size)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), content, 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	s.begin(false, "nginx", "-e", "stderr", "-p", s.dir, "-c", "nginx.conf")
	s.await(80)
}

// http requests files from nginx for the length of a turn.
func http(path string, more ...string) func(*Server, *nsnet.Space, string, int) (load, error) {
	return func(s *Server, from *nsnet.Space, address string, _ int) (load, error) {
		args := append([]string{"--threads", "1", "--connections", strconv.Itoa(Connections),
			"--duration", strconv.Itoa(int(turnLength.Seconds())) + "s", "--latency"}, more...)
		out, err := s.ask(from, "wrk", append(args, "http://"+address+path)...)
		if err != nil {
			return load{}, err
		}
		return parseWrk(out)
	}
}

func startRedis(s *Server) {
	s.t.Helper()
	s.begin(false, "redis-server", "--port", "6379", "--bind", "*", "--protected-mode", "no", "--save", "", "--appendonly", "no")
	s.await(6379)
	if _, err := redis("set", 16)(s, s.Near, "10.0.0.2", 5*redisKeys); err != nil { // fills nearly all keys
		s.t.Fatal(err)
	}
}

// redisKeys is the number of keys that redis-benchmark chooses from.
const redisKeys = 10_000

func redis(command string, pipeline int) func(*Server, *nsnet.Space, string, int) (load, error) {
	return func(s *Server, from *nsnet.Space, address string, n int) (load, error) {
		out, err := s.ask(from, "redis-benchmark", "-h", address, "-c", strconv.Itoa(Connections), "-n", strconv.Itoa(n),
			"-r", strconv.Itoa(redisKeys), "-d", "100", "-P", strconv.Itoa(pipeline), "-t", command, "--csv")
		if err != nil {
			return load{}, err
		}
		return parseRedis(out, n)
	}
}

// postgresProgram returns the path of a program of PostgreSQL. Debian keeps these in a
// folder per version, outside $PATH.
func postgresProgram(s *Server, name string) string {
	s.t.Helper()
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		found, _ := filepath.Glob(filepath.Join(dir, "../lib/postgresql/*/bin", name))
		if len(found) > 0 {
			return found[len(found)-1]
		}
	}
	need.ProgramFrom(s.t, ".ci/deps servers", name)
	return name
}

func startPostgres(s *Server) {
	s.t.Helper()
	data := filepath.Join(s.dir, "data")
	made := s.begin(true, postgresProgram(s, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--no-locale")
	<-made.Done()
	hba, err := os.OpenFile(filepath.Join(data, "pg_hba.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = hba.WriteString("host all all 10.0.0.0/24 trust\n")
		err = errors.Join(err, hba.Close())
	}
	if err != nil {
		s.t.Fatalf("%v\n%s", err, made.Log)
	}
	// Disable checkpoints and vacuuming, which would affect only some turns.
	s.begin(true, postgresProgram(s, "postgres"), "-D", data, "-c", "listen_addresses=*", "-c", "unix_socket_directories=",
		"-c", "synchronous_commit=off", "-c", "autovacuum=off", "-c", "checkpoint_timeout=1h", "-c", "max_wal_size=8GB")
	testkit.Await(s.t, func() error {
		_, err := s.ask(s.Near, postgresProgram(s, "pgbench"), "-h", "10.0.0.2", "-U", "postgres", "-i", "-s", "2", "-q", "postgres")
		return err
	})
}

func pgbench(script string) func(*Server, *nsnet.Space, string, int) (load, error) {
	return func(s *Server, from *nsnet.Space, address string, n int) (load, error) {
		const prefix = "transactions"
		out, err := s.ask(from, postgresProgram(s, "pgbench"), "-h", address, "-U", "postgres", "--no-vacuum",
			"--client", strconv.Itoa(Connections), "--transactions", strconv.Itoa(max(1, n/Connections)), script, "--log", "--log-prefix", prefix, "postgres")
		logs, _ := filepath.Glob(filepath.Join(s.dir, prefix+".*"))
		if err != nil || len(logs) != 1 {
			return load{}, errors.Join(err, fmt.Errorf("pgbench left %d logs of its transactions", len(logs)))
		}
		lines, err := os.ReadFile(logs[0])
		if err = errors.Join(err, os.Remove(logs[0])); err != nil {
			return load{}, err
		}
		return parsePgbench(out, string(lines))
	}
}

func startMemcached(s *Server) {
	s.t.Helper()
	s.begin(false, "memcached", "-u", "root", "-t", "1", "-U", "0", "-p", "11211")
	s.await(11211)
	if _, err := s.Workloads[1].run(s, s.Near, "10.0.0.2", 1); err != nil { // so that get finds the key
		s.t.Fatal(err)
	}
}

// memcached is the only server whose load generator is part of this process, since
// Debian's reports no latencies.
func memcached(request, answer string) func(*Server, *nsnet.Space, string, int) (load, error) {
	return func(s *Server, from *nsnet.Space, address string, n int) (l load, err error) {
		to := unix.SockaddrInet4{Port: 11211, Addr: [4]byte{127, 0, 0, 1}}
		if address != "127.0.0.1" {
			to.Addr = [4]byte{10, 0, 0, 2}
		}
		e := s.client.in(from, func() error { l, err = repeat(&to, []byte(request), []byte(answer), n); return nil })
		return l, errors.Join(err, e)
	}
}

// await waits until the server listens.
func (s *Server) await(port int) {
	s.t.Helper()
	testkit.Await(s.t, func() error {
		var fd int
		var err error
		s.Near.Do(func() {
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
				err = errors.Join(unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{10, 0, 0, 2}}), unix.Close(fd))
			}
		})
		if err != nil {
			return fmt.Errorf("connect to %s: %w", s.Name, err)
		}
		return nil
	})
}
