package session

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/internal/bounded"
	"nodeskoop/output"
)

// FileWait is how long the textfile's file system may take per operation.
const FileWait = 30 * time.Second

// Within runs f, which may hang on a file system, and waits for at most d.
func Within(d time.Duration, f func() error) error {
	_, err := bounded.Within(d, func() (none struct{}, err error) { return none, f() })
	if errors.Is(err, bounded.ErrNoAnswer) {
		return fmt.Errorf("the file system does not answer: %w (see dmesg, and the mounts with findmnt)", err)
	}
	return err
}

// OpenTextfile opens the textfile of a configuration.
func OpenTextfile(cfg *config.Config, log *slog.Logger) (*output.Textfile, error) {
	return output.NewTextfileOf(cfg.Interval, cfg.Textfile.Dir, cfg.Textfile.File, cfg.Textfile.Perm(), log)
}

// OutputFile opens the textfile at a path. In a folder it has the configured name.
func (s *Session) OutputFile(path string) (*output.Textfile, error) {
	dir, name := filepath.Split(path)
	if name == "" {
		name = s.Config.Textfile.File
	} else if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		dir, name = path, s.Config.Textfile.File
	}
	return output.NewTextfileOf(s.Config.Interval, cmp.Or(dir, "."), name, s.Config.Textfile.Perm(), s.Log)
}
