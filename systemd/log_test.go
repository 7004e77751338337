package systemd

import (
	"bytes"
	"log/slog"
	"testing"

	"nodeskoop/collect/catalog"
)

func TestHandlerMarksPriorities(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(NewHandler(&b, slog.LevelInfo)).With("probe", "tcp")
	log.Debug("hidden")
	log.Info("started", "n", 1)
	log.Log(t.Context(), catalog.LevelNotice, "was away")
	log.Warn("slow")
	log.WithGroup("g").Error("two\nlines", "k", "v")
	want := "<6>msg=started probe=tcp n=1\n<5>msg=\"was away\" probe=tcp\n<4>msg=slow probe=tcp\n<3>msg=\"two\\nlines\" probe=tcp g.k=v\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", &b, want)
	}
}
