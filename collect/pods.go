package collect

import (
	"net/netip"
	"sync/atomic"

	"nodeskoop/collect/owner"
)

// currentPods are the Pods of a Runner at any time: a reload may put others in
// their place, and probes that stay must ask those.
type currentPods struct{ p atomic.Pointer[owner.Pods] }

func (c *currentPods) set(p owner.Pods) { c.p.Store(&p) }

func (c *currentPods) now() owner.Pods {
	if p := c.p.Load(); p != nil {
		return *p
	}
	return owner.NoPods{}
}

// Running implements Pods.
func (c *currentPods) Running() []*owner.Pod { return c.now().Running() }

// ByNetns implements Pods.
func (c *currentPods) ByNetns(inode uint64) *owner.Pod { return c.now().ByNetns(inode) }

// ByAddr implements Pods.
func (c *currentPods) ByAddr(a netip.Addr) *owner.Pod { return c.now().ByAddr(a) }

// ByPID implements Pods.
func (c *currentPods) ByPID(pid int) *owner.Pod { return c.now().ByPID(pid) }

// ByCgroup implements Pods.
func (c *currentPods) ByCgroup(id uint64) *owner.Pod { return c.now().ByCgroup(id) }

// Processes implements Pods.
func (c *currentPods) Processes(p *owner.Pod, buf []int) ([]int, error) {
	return c.now().Processes(p, buf)
}

// Connected implements Pods.
func (c *currentPods) Connected() bool { return c.now().Connected() }
