package output

import (
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit/need"
)

// TestEntrySize measures the size of an event with a stack, in a journal and in export
// format. docs/fleet.md uses these numbers.
func TestEntrySize(t *testing.T) {
	need.Short(t)
	const entries, most = 60_000, 1_500 // bytes; the sizes in docs/fleet.md assume less
	d := newJournald(t)
	size := func() (n int64) {
		d.Sync()
		err := filepath.WalkDir(filepath.Join(d.Run, "log/journal"), func(_ string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			fi, err := e.Info()
			n += fi.Size()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := size()
	j := NewJournal(JournalOptions{Path: d.Socket})
	p := newPacer(j)
	for i := range entries {
		e := eventOf(catalog.EventByName("PacketLoss"))
		e.Time = e.Time.Add(time.Duration(i) * 7919 * time.Microsecond)
		e.Dst.Port = uint16(32768 + i%28232)
		p.send(e, 1000)
	}
	closeSink(t, j, time.Minute)
	if n := d.count(); n != entries {
		t.Fatalf("%d entries of %d", n, entries)
	}
	journal := float64(size()-before) / entries
	export := len(d.Journalctl("-o", "export", "SYSLOG_IDENTIFIER=nodeskoop", "-n", "1000")) / 1000
	t.Logf("an entry takes %.0f bytes in the journal, %d in export format", journal, export)
	if journal > most || export > 2*most {
		t.Errorf("more than %d bytes in the journal, or %d in export format", most, 2*most)
	}
}
