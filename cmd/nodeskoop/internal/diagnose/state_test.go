package diagnose

import (
	"fmt"
	"slices"
	"strconv"
	"testing"

	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// TestDevicesOfPods: a pod's interfaces of the node are those that the kernel connects with
// it. A pod that chooses the indices of its own interfaces, also of those that lead to other
// namespaces, gets no other pod's.
func TestDevicesOfPods(t *testing.T) {
	need.Root(t)
	need.Program(t, "ip")
	node, web, stranger, hidden := nsnet.New(t), nsnet.New(t), nsnet.New(t), nsnet.New(t)
	pair := func(a *nsnet.Space, index int, b *nsnet.Space, peer int) {
		t.Helper()
		a.Run("ip", "link", "add", "index", strconv.Itoa(index), "name", fmt.Sprintf("v%d", index), "type", "veth",
			"peer", "index", strconv.Itoa(peer), "name", fmt.Sprintf("w%d", peer), "netns", strconv.Itoa(b.PID))
	}
	pair(node, 1005, web, 1002)
	pair(node, 1007, stranger, 1009)
	pair(stranger, 1002, stranger, 1005) // as web's
	pair(stranger, 1003, hidden, 1005)
	o := &observer{recording: &recording{after: moment{netns: map[string]*netnsState{}}}}
	read := func(name string, s *nsnet.Space) {
		t.Helper()
		s.Do(func() {
			state := &netnsState{}
			if err := state.readLinks(node.Path); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			o.after.netns[name] = state
		})
	}
	read(Node, node)
	read("shop/web", web)
	read("shop/stranger", stranger)
	for name, want := range map[string][]int{"shop/web": {1005}, "shop/stranger": {1007}, Node: nil, "shop/none": nil} {
		if got := o.devices(name); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if got := fmt.Sprint(o.podDevices()); got != "map[v1005:shop/web v1007:shop/stranger]" {
		t.Errorf("got %s", got)
	}

	// Without the node's namespace the interfaces are still read.
	web.Do(func() {
		state := &netnsState{}
		if err := state.readLinks("/nowhere"); err == nil || len(state.links) == 0 {
			t.Errorf("%d interfaces, %v", len(state.links), err)
		}
	})
}
