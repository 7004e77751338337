// Package browser lets tests inspect a page in Chromium, by the DevTools protocol over
// a pipe.
package browser

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// patience limits the wait for the browser's answer.
const patience = 60 * time.Second

// Browser is a Chromium without a window.
type Browser struct {
	t   testing.TB
	to  *os.File
	mu  sync.Mutex
	id  int
	ask map[int]chan answer
	on  map[string]func(method string, params json.RawMessage) // by session
}

type answer struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// Start starts a Chromium that ends with the test.
func Start(t testing.TB) *Browser {
	t.Helper()
	need.ProgramFrom(t, ".ci/deps render", "chromium")
	fromUs, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, fromIt, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
		"--user-data-dir="+t.TempDir(), "--remote-debugging-pipe", "about:blank")
	cmd.ExtraFiles = []*os.File{fromUs, fromIt} // descriptors 3 and 4, as the protocol requires
	b := &Browser{t: t, to: to, ask: map[int]chan answer{}, on: map[string]func(string, json.RawMessage){}}
	testkit.Start(t, cmd)
	fromUs.Close()
	fromIt.Close()
	t.Cleanup(func() { to.Close(); from.Close() })
	go b.read(from)
	return b
}

// read processes the browser's messages until it ends.
func (b *Browser) read(from *os.File) {
	r := bufio.NewReader(from)
	for {
		line, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			ID        int
			SessionID string
			Method    string
			Params    json.RawMessage
			answer
		}
		if json.Unmarshal(line[:len(line)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		ch, on := b.ask[m.ID], b.on[m.SessionID]
		delete(b.ask, m.ID)
		b.mu.Unlock()
		switch {
		case ch != nil:
			ch <- m.answer
		case on != nil && m.Method != "":
			on(m.Method, m.Params)
		}
	}
}

// call sends the browser a request; result may be nil.
func (b *Browser) call(session, method string, params, result any) {
	b.t.Helper()
	ch := make(chan answer, 1)
	b.mu.Lock()
	b.id++
	id := b.id
	b.ask[id] = ch
	b.mu.Unlock()
	text, err := json.Marshal(map[string]any{"id": id, "method": method, "params": params, "sessionId": session})
	if session == "" {
		text, err = json.Marshal(map[string]any{"id": id, "method": method, "params": params})
	}
	if err == nil {
		_, err = b.to.Write(append(text, 0))
	}
	if err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	select {
	case a := <-ch:
		if a.Error != nil {
			b.t.Fatalf("%s: %s", method, a.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(a.Result, result); err != nil {
				b.t.Fatalf("%s: %v in %s", method, err, a.Result)
			}
		}
	case <-time.After(patience):
		b.t.Fatalf("%s: the browser did not answer within %v", method, patience)
	}
}

type object = map[string]any

// Page is a page that is shown.
type Page struct {
	b       *Browser
	session string
	loaded  chan struct{}

	mu       sync.Mutex
	problems []string
	requests []string
}

// Open loads a page in a window of the given size, in dark or light mode.
func (b *Browser) Open(url string, width, height int, dark bool) *Page {
	b.t.Helper()
	var made struct{ TargetID string }
	b.call("", "Target.createTarget", object{"url": "about:blank"}, &made)
	var attached struct{ SessionID string }
	b.call("", "Target.attachToTarget", object{"targetId": made.TargetID, "flatten": true}, &attached)
	p := &Page{b: b, session: attached.SessionID, loaded: make(chan struct{}, 10)}
	b.mu.Lock()
	b.on[p.session] = p.event
	b.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		p.call(domain+".enable", object{}, nil)
	}
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	p.call("Emulation.setDeviceMetricsOverride", object{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}, nil)
	p.call("Emulation.setEmulatedMedia", object{"features": []object{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	p.call("Page.navigate", object{"url": url}, nil)
	select {
	case <-p.loaded:
	case <-time.After(patience):
		b.t.Fatalf("%s was not loaded within %v", url, patience)
	}
	return p
}

func (p *Page) call(method string, params, result any) {
	p.b.t.Helper()
	p.b.call(p.session, method, params, result)
}

func (p *Page) event(method string, params json.RawMessage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch method {
	case "Page.loadEventFired":
		p.loaded <- struct{}{}
	case "Runtime.exceptionThrown", "Log.entryAdded":
		p.problems = append(p.problems, string(params))
	case "Network.requestWillBeSent":
		var r struct{ Request struct{ URL string } }
		_ = json.Unmarshal(params, &r)
		p.requests = append(p.requests, r.Request.URL)
	}
}

// Problems returns the browser's complaints: script errors, and violations of the
// page's policy.
func (p *Page) Problems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.problems...)
}

// Requests returns the requested addresses, the page's own included.
func (p *Page) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.requests...)
}

// Evaluate evaluates an expression of JavaScript in the page.
func (p *Page) Evaluate(expression string, result any) {
	p.b.t.Helper()
	var a struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	p.call("Runtime.evaluate", object{"expression": expression, "returnByValue": true}, &a)
	if len(a.ExceptionDetails) > 0 {
		p.b.t.Fatalf("%s: %s", expression, a.ExceptionDetails)
	}
	if err := json.Unmarshal(a.Result.Value, result); err != nil {
		p.b.t.Fatalf("%s: %v in %s", expression, err, a.Result.Value)
	}
}

// Overflow describes elements wider than the window, "" if there are none.
func (p *Page) Overflow() string {
	p.b.t.Helper()
	var wide []string
	p.Evaluate(`(() => { const w = document.documentElement.clientWidth; return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > w + 0.5).slice(0, 5).map(e => e.tagName + ' ' + (e.className.baseVal ?? e.className) + ' ' + Math.round(e.getBoundingClientRect().right) + ': ' + e.textContent.slice(0, 40)).concat(document.documentElement.scrollWidth > w ? ['the page: ' + document.documentElement.scrollWidth] : []) })()`, &wide)
	return strings.Join(wide, "; ")
}

// Picture returns a PNG of the page from its top, at most as high as the page.
func (p *Page) Picture(highest int) []byte {
	p.b.t.Helper()
	var size [2]int
	p.Evaluate("[document.documentElement.clientWidth, document.documentElement.scrollHeight]", &size)
	var shot struct{ Data string }
	p.call("Page.captureScreenshot", object{"format": "png", "captureBeyondViewport": true, "clip": object{"x": 0, "y": 0, "width": size[0], "height": min(size[1], highest), "scale": 1}}, &shot)
	b, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		p.b.t.Fatal(fmt.Errorf("the picture: %w", err))
	}
	return b
}
