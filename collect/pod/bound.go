package pod

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits on the labels of one pod, which may exceed a megabyte. Labels that the caller
// names are always kept; of the others, maxLabels are. A value longer than maxLabelValue
// is left out rather than cut, because a cut value could equal another one.
const (
	maxLabels     = 64
	maxLabelBytes = 16 << 10
	maxLabelValue = 4096
	// maxName is the length of the longest name in Kubernetes.
	maxName = 253
)

// bound cuts a record to these limits. It copies what is kept, so that the record's memory
// can be freed.
func (a *about) bound(keep []string) {
	a.labels, a.labelsLeftOut = boundLabels(a.labels, keep)
	a.namespace, a.name, a.uid = boundName(a.namespace), boundName(a.name), boundName(a.uid)
	if len(a.netnsPath) >= unix.PathMax {
		a.netnsPath = ""
	}
}

func boundLabels(labels map[string]string, keep []string) (kept map[string]string, leftOut int) {
	if labels == nil {
		return nil, 0
	}
	kept = map[string]string{}
	take := func(k string) {
		kept[strings.Clone(k)] = strings.Clone(labels[k])
	}
	for _, k := range keep {
		if v, ok := labels[k]; ok && len(v) <= maxLabelValue {
			take(k)
		}
	}
	// Sorted, so that the same labels are kept each time.
	names := make([]string, 0, min(len(labels), 1024))
	for k := range labels {
		names = append(names, k)
	}
	slices.Sort(names)
	size, n := 0, 0
	for _, k := range names {
		if _, ok := kept[k]; ok {
			continue
		}
		if len := len(k) + len(labels[k]); n < maxLabels && len <= maxLabelValue && size+len <= maxLabelBytes {
			take(k)
			n++
			size += len
		}
	}
	return kept, len(labels) - len(kept)
}

// boundName shortens a long name. A hash at the end keeps shortened names distinct.
func boundName(s string) string {
	if len(s) <= maxName {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return strings.ToValidUTF8(s[:maxName-17], "") + "~" + hex.EncodeToString(sum[:8])
}
