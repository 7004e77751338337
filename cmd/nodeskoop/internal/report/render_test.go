package report

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nodeskoop/collect/event"
	"nodeskoop/internal/testkit/browser"
	"nodeskoop/internal/testkit/need"
)

const (
	samplePage    = "../../../../docs/report-sample.html"
	samplePicture = "../../../../docs/images/report.png"
	// pageNote names the PNG text chunk that identifies the page in the picture.
	pageNote = "nodeskoop-page"
	// highest is the maximum height of the page in the picture.
	highest = 1500
)

// TestRender loads pages in a browser, in the width of a phone and of a desktop, in light
// and dark mode. Nothing may be wider than the window, request anything, or fail. `make
// render` puts the picture of the sample into docs/images, and all pictures into the folder
// NODESKOOP_RENDER_ALL, if set.
func TestRender(t *testing.T) {
	pictures := os.Getenv("NODESKOOP_RENDER")
	need.Target(t, "render", pictures != "")
	b := browser.Start(t)
	quiet := New(options())
	if err := quiet.History(steadily(), nil); err != nil {
		t.Fatal(err)
	}
	sample := pageOf(t, badReport(t))
	days := options()
	days.Since = days.Until.AddDate(0, 0, -30)
	for name, text := range map[string]string{"month": pageOf(t, busyReport(t, days)), "no-before": pageOf(t, busyReport(t, options())), "report": sample, "quiet": pageOf(t, quiet.Report()), "bad-day": pageOf(t, badDay(t)), "nasty": pageOf(t, nastyReport(t))} {
		file := filepath.Join(t.TempDir(), name+".html")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, width := range []int{360, 1200} {
			for _, dark := range []bool{false, true} {
				where := fmt.Sprintf("%s, %d px, dark %v", name, width, dark)
				p := b.Open("file://"+file, width, 800, dark)
				var seen struct{ Body, Text string }
				p.Evaluate("(s => ({Body: s.backgroundColor, Text: s.color}))(getComputedStyle(document.body))", &seen)
				if isDark := strings.HasPrefix(seen.Body, "rgb(16,"); isDark != dark {
					t.Errorf("%s: the ground is %s", where, seen.Body)
				}
				if wide := p.Overflow(); wide != "" {
					t.Errorf("%s: wider than the window: %s", where, wide)
				}
				var over []string
				p.Evaluate(`[...document.querySelectorAll('td, th, .lane .n, .axis div')].filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)`, &over)
				if len(over) > 0 {
					t.Errorf("%s: does not fit into its column: %q", where, over)
				}
				if problems := p.Problems(); len(problems) > 0 {
					t.Errorf("%s: %s", where, problems)
				}
				if r := p.Requests(); len(r) != 1 {
					t.Errorf("%s: %d requests: %s", where, len(r), r)
				}
				var small []string
				p.Evaluate(`[...document.querySelectorAll('td:not(:empty), p, .who, .axis span, figcaption')].filter(e => e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.textContent)`, &small)
				if len(small) > 0 {
					t.Errorf("%s: too small to read: %q", where, small)
				}
				if dir := os.Getenv("NODESKOOP_RENDER_ALL"); dir != "" {
					if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d-%v.png", name, width, dark)), p.Picture(6000), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if name != "report" || width != 1200 || dark {
					continue
				}
				if err := os.WriteFile(filepath.Join(pictures, "report.png"), noted(t, p.Picture(highest), sample), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// busyReport is a report with large numbers, and without the hour before.
func busyReport(t *testing.T, o Options) *Report {
	t.Helper()
	b := New(o)
	for _, e := range badHour(t) {
		e.Merged = &event.Merged{Count: 88_888_888, First: e.FirstSeen(), Last: e.LastSeen()}
		b.Event(e)
	}
	h := badHistory(t)[60:]
	for _, m := range h {
		for i := range m.Samples {
			m.Samples[i].Value *= 1000
		}
	}
	if err := b.History(h, nil); err != nil {
		t.Fatal(err)
	}
	return b.Report()
}

// digest distinguishes pages.
func digest(page string) string {
	sum := sha256.Sum256([]byte(page))
	return hex.EncodeToString(sum[:])
}

// noted adds to a picture the note that identifies its page.
func noted(t *testing.T, picture []byte, page string) []byte {
	t.Helper()
	const header = 8 + 12 + 13 // the signature and the chunk IHDR
	if len(picture) < header {
		t.Fatalf("%d bytes of a picture", len(picture))
	}
	body := []byte("tEXt" + pageNote + "\x00" + digest(page))
	chunk := binary.BigEndian.AppendUint32(nil, uint32(len(body)-4))
	chunk = binary.BigEndian.AppendUint32(append(chunk, body...), crc32.ChecksumIEEE(body))
	return bytes.Join([][]byte{picture[:header], chunk, picture[header:]}, nil)
}

// The picture in docs/images shows the sample in docs/.
func TestPictureIsOfTheSample(t *testing.T) {
	page, err := os.ReadFile(samplePage)
	if err != nil {
		t.Fatal(err)
	}
	picture, err := os.ReadFile(samplePicture)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(picture, []byte(pageNote+"\x00"+digest(string(page)))) {
		t.Errorf("%s is of another page than %s; make render draws it", samplePicture, samplePage)
	}
	if c, err := png.DecodeConfig(bytes.NewReader(picture)); err != nil || c.Width != 1200 || c.Height < 800 {
		t.Errorf("%+v, %v", c, err)
	}
	if len(picture) > 400_000 {
		t.Errorf("%d bytes", len(picture))
	}
}
