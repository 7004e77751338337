package pod

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What is kept of a pod's labels, which may be a megabyte and more: those that
// the caller names, whatever else there is, and of the others so many. Values
// that are longer than any of Kubernetes' are left out, since a part of one
// would be another.
const (
	maxLabels     = 64
	maxLabelBytes = 16 << 10
	maxLabelValue = 4096
	// maxName is the length of the longest name of Kubernetes.
	maxName = 253
)

// bound drops what of a record is more than is kept of any pod. What is kept is
// a copy, so that the record's memory goes.
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
	// The same ones each time: the first by name.
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

// boundName shortens a name so that it is still another than every other.
func boundName(s string) string {
	if len(s) <= maxName {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return strings.ToValidUTF8(s[:maxName-17], "") + "~" + hex.EncodeToString(sum[:8])
}
