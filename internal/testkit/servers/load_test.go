package servers

import (
	"strings"
	"testing"
	"time"
)

const wrkReport = `Running 1s test @ http://10.0.0.2/100
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   622.66us  286.12us   4.91ms   87.33%
    Req/Sec    26.02k     1.63k   28.56k    54.55%
  Latency Distribution
     50%  560.00us
     75%  691.00us
     90%    0.94ms
     99%    1.71ms
  28459 requests in 1.10s, 9.42MB read
Requests/sec:  25887.32
Transfer/sec:      8.57MB
`

const redisReport = `WARNING: Could not fetch server CONFIG
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"GET","53191.49","0.163","0.040","0.151","0.247","0.399","2.151"
`

const pgbenchReport = `pgbench (15.20 (Debian 15.20-0+deb12u1))
transaction type: <builtin: select only>
scaling factor: 2
number of transactions actually processed: 4/4
latency average = 1.208 ms
initial connection time = 41.514 ms
tps = 13240.912 (without initial connection time)
`

// pgbenchLog: client, transaction, microseconds, script, seconds and microseconds of the
// end.
const pgbenchLog = `0 1 1000 0 1700000000 100000
1 1 2000 0 1700000000 100000
0 2 3000 0 1700000000 100000
1 2 4000 0 1700000000 100000
`

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		got  func() (load, error)
		want load
	}{
		"wrk":             {func() (load, error) { return parseWrk(wrkReport) }, load{operations: 28459, rate: 25887.32, p99: 1710 * time.Microsecond}},
		"redis-benchmark": {func() (load, error) { return parseRedis(redisReport, 60000) }, load{operations: 60000, rate: 53191.49, p99: 399 * time.Microsecond}},
		"pgbench":         {func() (load, error) { return parsePgbench(pgbenchReport, pgbenchLog) }, load{operations: 4, rate: 13240.912, p99: 3970 * time.Microsecond}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := c.got(); err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
	// A report that lacks a value, or says that requests failed, is an error.
	for name, parse := range map[string]func() (load, error){
		"nothing of wrk":           func() (load, error) { return parseWrk("") },
		"wrk without a percentile": func() (load, error) { return parseWrk(strings.ReplaceAll(wrkReport, "99%", "98%")) },
		"wrk with failed requests": func() (load, error) { return parseWrk(wrkReport + "  Non-2xx or 3xx responses: 7\n") },
		"wrk with failed reads": func() (load, error) {
			return parseWrk("  Socket errors: connect 0, read 3, write 0, timeout 0\n" + wrkReport)
		},
		"nothing of Redis":          func() (load, error) { return parseRedis("", 1) },
		"Redis without a value":     func() (load, error) { return parseRedis(strings.ReplaceAll(redisReport, "rps", "rp"), 1) },
		"Redis with a bad number":   func() (load, error) { return parseRedis(strings.ReplaceAll(redisReport, "0.399", "nan?"), 1) },
		"nothing of pgbench":        func() (load, error) { return parsePgbench("", pgbenchLog) },
		"pgbench with a short line": func() (load, error) { return parsePgbench(pgbenchReport, "0 1\n") },
		"pgbench with a bad number": func() (load, error) { return parsePgbench(pgbenchReport, "0 1 failed 0\n") },
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := parse(); err == nil {
				t.Errorf("no error, but %+v", got)
			}
		})
	}
}
