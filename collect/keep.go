package collect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sync"
	"time"

	"nodeskoop/internal/kernel"
)

// Kept is a probe's state of a target (see State) whose counters continue after a restart
// of the program or the probe, or after the target was away for a while. The kernel forgets
// the counts of a deleted interface or an exited process; if the state were lost, a sum
// that includes them would fall.
type Kept interface {
	// Keep appends the state, or nothing if a zero value is equivalent. It is called
	// between two cycles.
	Keep(b []byte) []byte
	// Recall restores a zero value from what Keep appended, possibly an hour and a restart
	// ago. After an error the caller discards the value.
	Recall(b []byte) error
}

const (
	stateMagic   = "nodeskoop counters\n"
	stateVersion = 1

	// MaxState is the largest encoded state, in bytes. A node with 110 pods and 1,000
	// processes needs about 80 KiB.
	MaxState = 8 << 20

	// keepFor is how long the state of an absent target is kept: the counters of a pod that
	// containerd does not list for a moment continue.
	keepFor = time.Minute
)

// keepUnused is how long the state of a disabled probe is kept, for example while a single
// probe is sampled by hand.
const keepUnused = 24 * time.Hour

// sampleKey is the entry for the time of the last sample; see gaps.
var sampleKey = pastKey{"", "sample"}

// ErrOtherMachine says that the state is of another boot, PID namespace or time namespace,
// where PIDs and times mean something else.
var ErrOtherMachine = errors.New("it is of another boot or container")

// keeper holds the state of targets and probes that are absent now.
type keeper struct {
	mu   sync.Mutex
	past map[pastKey]past

	also   []alsoKept          // state that is not a probe's
	sample func([]byte) []byte // appends the time of the last sample; nil: not kept
	before []byte              // what sample appended in an earlier process, possibly before a boot

	machine    string // boot, PID namespace and time namespace; see kernel.MachineID
	buf, spare []byte
	cut        int // number of targets that did not fit into the last encoded state
	now        func() time.Duration
}

type pastKey struct{ target, probe string }

// alsoKept is state under a name, without a target.
type alsoKept struct {
	name string
	kept Kept
}

type past struct {
	data []byte
	seen time.Duration // when the target was last present, as time since boot
}

func newKeeper() *keeper { return &keeper{past: map[pastKey]past{}, now: kernel.SinceBoot} }

// recall restores s from the state of that target and probe, if there is one.
func (k *keeper) recall(target, probe string, s Kept) error {
	k.mu.Lock()
	p, ok := k.past[pastKey{target, probe}]
	delete(k.past, pastKey{target, probe})
	k.mu.Unlock()
	if !ok {
		return nil
	}
	return s.Recall(p.data)
}

// put stores a probe's state of a target that goes away.
func (k *keeper) put(target, probe string, s Kept) {
	data := s.Keep(nil)
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(data) == 0 {
		delete(k.past, pastKey{target, probe})
		return
	}
	k.past[pastKey{target, probe}] = past{data, k.now()}
}

// each calls f with a probe's state of each absent target.
func (k *keeper) each(probe string, f func(data []byte)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, p := range k.past {
		if key.probe == probe {
			f(p.data)
		}
	}
}

// appendKept encodes the state of all probes on the target. If a call hangs that may still
// change the state, it repeats the previous encoding.
func (m *memory) appendKept(b []byte, now time.Duration) []byte {
	if len(m.stuck) > 0 || len(m.hung) > 0 {
		return append(b, m.kept...)
	}
	for probe, s := range m.state {
		if s, ok := s.(Kept); ok {
			b = appendEntry(b, m.key, probe, now, s.Keep)
		}
	}
	return b
}

// encode encodes the state: first the plan's targets, then absent ones. there reports
// whether a target is present, enabled whether a probe is. connected says whether the
// list of pods is known.
func (k *keeper) encode(p *plan, there, enabled func(string) bool, connected bool) {
	if k.machine == "" {
		return // state is not saved
	}
	now := k.now()
	b := append(k.spare[:0], stateMagic...)
	b = append(b, stateVersion)
	b = appendString(b, k.machine)
	k.cut = 0
	if k.sample != nil {
		b = appendEntry(b, sampleKey.target, sampleKey.probe, now, k.sample)
	}
	whole := func(from int) bool {
		if len(b) > MaxState-crc32.Size {
			b = b[:from]
			k.cut++
			return false
		}
		return true
	}
	keep := func(m *memory) {
		m.mu.Lock()
		defer m.mu.Unlock()
		from := len(b)
		if b = m.appendKept(b, now); whole(from) {
			m.kept = b[from:]
		}
	}
	for _, a := range k.also {
		from := len(b)
		b = appendEntry(b, "", a.name, now, a.kept.Keep)
		whole(from)
	}
	for _, t := range p.targets {
		keep(t.memory)
	}
	keep(p.unknown.memory)
	k.mu.Lock()
	for key, p := range k.past {
		if there(key.target) {
			p.seen = now // the target is present, only its probe is disabled or fails
			k.past[key] = p
		}
		if age := now - p.seen; age > keepFor && connected && enabled(key.probe) || age > keepUnused {
			delete(k.past, key)
			continue
		}
		from := len(b)
		b = appendEntry(b, key.target, key.probe, p.seen, func(b []byte) []byte { return append(b, p.data...) })
		whole(from)
	}
	k.mu.Unlock()
	b = seal(b)
	// memory.kept points into buf; the next encode writes to spare.
	k.buf, k.spare = b, k.buf
}

// use takes over a state that was encoded earlier, either all of it or nothing.
func (k *keeper) use(data []byte) error {
	machine, all, err := parseState(data)
	if err != nil {
		return err
	}
	// The time of the last sample remains valid after a boot.
	k.before = all[sampleKey].data
	delete(all, sampleKey)
	if machine != k.machine {
		return ErrOtherMachine
	}
	for _, a := range k.also {
		key := pastKey{"", a.name}
		p, ok := all[key]
		if delete(all, key); !ok {
			continue
		}
		if err := a.kept.Recall(p.data); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.past = all
	return nil
}

var errState = errors.New("it is damaged")

func parseState(data []byte) (machine string, all map[pastKey]past, err error) {
	rest, ok := bytes.CutPrefix(data, []byte(stateMagic))
	switch {
	case !ok || len(rest) < 1+crc32.Size:
		return "", nil, errors.New("it is not a state of nodeskoop's")
	case len(data) > MaxState:
		return "", nil, fmt.Errorf("it has %d bytes, more than %d", len(data), MaxState)
	case rest[0] != stateVersion:
		return "", nil, fmt.Errorf("it is of version %d, and this program knows %d", rest[0], stateVersion)
	}
	body := data[:len(data)-crc32.Size]
	if crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(data[len(body):]) {
		return "", nil, errState
	}
	d := Decoder{rest: body[len(stateMagic)+1:]}
	machine = string(d.Bytes())
	all = map[pastKey]past{}
	for d.More() {
		key := pastKey{string(d.Bytes()), string(d.Bytes())}
		seen := d.Uint()
		if seen > math.MaxInt64 {
			return "", nil, errState
		}
		all[key] = past{bytes.Clone(d.Bytes()), time.Duration(seen)}
	}
	return machine, all, d.Err()
}

// seal appends the checksum.
func seal(b []byte) []byte { return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }

func appendEntry(b []byte, target, probe string, seen time.Duration, data func([]byte) []byte) []byte {
	from := len(b)
	b = appendString(b, target)
	b = appendString(b, probe)
	b = binary.AppendUvarint(b, uint64(seen))
	// Reserve four bytes for the length, as a padded uvarint, because the length
	// is not known yet.
	at := len(b)
	b = data(append(b, 0, 0, 0, 0))
	n := len(b) - at - 4
	if n == 0 {
		return b[:from]
	}
	for i := range 4 {
		b[at+i] = byte(n>>(7*i))&0x7F | 0x80
	}
	b[at+3] &= 0x7F
	return b
}

func appendString(b []byte, x string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(x))), x...)
}

// Decoder reads what Kept.Keep appended with binary.AppendUvarint. After an error it
// returns zeros, and Err returns the error.
type Decoder struct {
	rest []byte
	bad  bool
}

// NewDecoder returns a Decoder of b.
func NewDecoder(b []byte) *Decoder { return &Decoder{rest: b} }

// Uint reads a number.
func (d *Decoder) Uint() uint64 {
	x, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[n:]
	return x
}

// Uints reads numbers into all of x.
func (d *Decoder) Uints(x []uint64) {
	for i := range x {
		x[i] = d.Uint()
	}
}

// Bytes reads a length and that many bytes, which alias the Decoder's input.
func (d *Decoder) Bytes() []byte {
	n := d.Uint()
	if n > uint64(len(d.rest)) {
		d.bad, d.rest = true, nil
		return nil
	}
	x := d.rest[:n]
	d.rest = d.rest[n:]
	return x
}

// More reports whether any input is left.
func (d *Decoder) More() bool { return len(d.rest) > 0 }

// Err returns an error if the input was truncated or held an invalid number.
func (d *Decoder) Err() error {
	if d.bad {
		return errState
	}
	return nil
}

// AppendUints appends numbers for Decoder.Uints.
func AppendUints(b []byte, x ...uint64) []byte {
	for _, n := range x {
		b = binary.AppendUvarint(b, n)
	}
	return b
}
