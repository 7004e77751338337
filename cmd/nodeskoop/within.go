package main

import (
	"errors"
	"fmt"
	"time"

	"nodeskoop/internal/bounded"
)

// fileWait is how long the file system of the textfile may take for one step.
const fileWait = 30 * time.Second

// within runs f, which may hang on a file system, and waits up to d for it.
func within(d time.Duration, f func() error) error {
	_, err := bounded.Within(d, func() (none struct{}, err error) { return none, f() })
	if errors.Is(err, bounded.ErrNoAnswer) {
		return fmt.Errorf("the file system does not answer: %w (see dmesg, and the mounts with findmnt)", err)
	}
	return err
}
