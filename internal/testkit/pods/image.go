package pods

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// The images of the harness.
const (
	pauseImage   = "localhost/pause:1"
	busyboxImage = "localhost/busybox:1"
)

// writeImages writes both images as one docker-archive. They share one layer: busybox with
// a link for each of its programs.
func writeImages(file string) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s needs shared libraries, which an image would lack: install busybox-static", path)
		}
	}
	list, err := exec.Command(path, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", path, err)
	}

	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, dir := range []string{"bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := addFile(w, "bin/busybox", 0o755, program); err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		if name == "busybox" {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}

	type manifest struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var manifests []manifest
	var out bytes.Buffer
	w = tar.NewWriter(&out)
	if err := addFile(w, "layer.tar", 0o644, layer.Bytes()); err != nil {
		return err
	}
	for _, image := range []struct {
		name  string
		entry []string
	}{
		{pauseImage, []string{"/bin/sleep", "2147483647"}},
		{busyboxImage, nil},
	} {
		config, err := json.Marshal(map[string]any{
			"architecture": runtime.GOARCH,
			"os":           "linux",
			"created":      "2026-01-01T00:00:00Z",
			"config":       map[string]any{"Entrypoint": image.entry, "Env": []string{"PATH=/bin"}},
			"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hexSum(layer.Bytes())}},
			"history":      []any{map[string]string{"created": "2026-01-01T00:00:00Z"}},
		})
		if err != nil {
			return err
		}
		name := hexSum(config) + ".json"
		if err := addFile(w, name, 0o644, config); err != nil {
			return err
		}
		manifests = append(manifests, manifest{name, []string{image.name}, []string{"layer.tar"}})
	}
	m, err := json.Marshal(manifests)
	if err != nil {
		return err
	}
	if err := addFile(w, "manifest.json", 0o644, m); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(file, out.Bytes(), 0o644)
}

func addFile(w *tar.Writer, name string, mode int64, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
