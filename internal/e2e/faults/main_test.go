package faults

import (
	"os"
	"testing"

	"nodeskoop/internal/testkit"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == actorVerb {
		act(os.Args[2:])
	}
	os.Exit(testkit.Main(m))
}
