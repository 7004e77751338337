package session

import (
	"slices"
	"testing"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/trace"
)

// TestFactories: each probe of the catalogue has exactly one factory.
func TestFactories(t *testing.T) {
	var declared, built []string
	for _, p := range catalog.Probes() {
		declared = append(declared, p.Name)
	}
	for _, f := range Factories(trace.New(trace.Options{})) {
		built = append(built, f.Name)
	}
	slices.Sort(declared)
	slices.Sort(built)
	if !slices.Equal(declared, built) {
		t.Errorf("the catalogue declares %v,\nthe program builds %v", declared, built)
	}
}
