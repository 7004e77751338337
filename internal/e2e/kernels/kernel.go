package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// newest stands for the newest kernel of the backports.
const newest = "newest"

// Debian's flavours of a kernel. A series without a flavour means cloud, which has the
// drivers of virtual machines only. The generic flavour adds drivers. The rt flavour is
// the generic one with PREEMPT_RT.
const (
	cloud   = "cloud"
	generic = "generic"
	rt      = "rt"
)

// kernel is one of Debian's kernels, unpacked in the cache.
type kernel struct {
	Release  string // release as shown by uname -r
	Packages []string
	dir      string
}

// series is the part of the release that identifies it in a table: "6.12", or
// "6.12-rt" for a flavour other than cloud.
func (k *kernel) series() string {
	parts := strings.SplitN(k.Release, ".", 3)
	series := strings.Join(parts[:min(2, len(parts))], ".")
	switch {
	case len(parts) < 3 || strings.Contains(parts[2], "-"+cloud+"-"):
		return series
	case strings.Contains(parts[2], "-"+rt+"-"):
		return series + "-" + rt
	default:
		return series + "-" + generic
	}
}

func (k *kernel) image() string { return filepath.Join(k.dir, "vmlinuz") }

// fetchKernel returns the kernel from the cache. It downloads the kernel if it is
// missing or, with refresh, if there is a newer one.
func fetchKernel(cache string, a func() (*apt, error), arch, series string, refresh bool) (*kernel, error) {
	dir := filepath.Join(cache, arch, "kernel-"+series)
	k, err := cachedKernel(dir)
	if err == nil && !refresh {
		return k, nil
	}
	archive, err := a()
	if err != nil {
		return nil, err
	}
	packages, err := archive.kernelPackages(series)
	if err != nil {
		return nil, err
	}
	if k != nil && strings.Join(k.Packages, " ") == strings.Join(packages, " ") {
		return k, nil
	}
	fmt.Fprintf(os.Stderr, "downloading %s\n", strings.Join(packages, " "))
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "new-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	debs, err := archive.download(tmp, packages)
	if err != nil {
		return nil, err
	}
	fresh := &kernel{Packages: packages}
	for _, deb := range debs {
		if err := unpack(deb, fresh.take(tmp)); err != nil {
			return nil, err
		}
		os.Remove(deb)
	}
	if fresh.Release == "" {
		return nil, fmt.Errorf("%s hold no kernel", strings.Join(packages, " "))
	}
	data, err := json.Marshal(fresh)
	if err == nil {
		err = os.WriteFile(filepath.Join(tmp, "kernel.json"), data, 0o644)
	}
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, err
	}
	return cachedKernel(dir)
}

func cachedKernel(dir string) (*kernel, error) {
	data, err := os.ReadFile(filepath.Join(dir, "kernel.json"))
	if err != nil {
		return nil, err
	}
	k := &kernel{dir: dir}
	if err := json.Unmarshal(data, k); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return k, nil
}

// take stores the kernel's image and its modules in one folder.
func (k *kernel) take(dir string) func(*tar.Header, io.Reader) error {
	return func(h *tar.Header, r io.Reader) error {
		base := path.Base(h.Name)
		switch {
		case h.Typeflag != tar.TypeReg:
			return nil
		case strings.HasPrefix(base, "vmlinuz"):
			k.Release = strings.TrimPrefix(base, "vmlinuz-")
			if base == "vmlinuz" {
				k.Release = path.Base(path.Dir(h.Name))
			}
			base = "vmlinuz"
		case strings.Contains(base, ".ko"):
		default:
			return nil
		}
		f, err := os.Create(filepath.Join(dir, base))
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	}
}

// modules returns the wanted modules and their dependencies in loading order. A
// missing name is built in, or unknown to this kernel; the tests find out.
//
// Verifying signatures is the slowest part of loading on an emulated CPU, so
// signatures are removed unless signed is set.
func (k *kernel) modules(wanted []string, signed bool) (files []string, t tree, err error) {
	names, err := os.ReadDir(k.dir)
	if err != nil {
		return nil, nil, err
	}
	byName := map[string]string{}
	for _, n := range names {
		if name, _, ok := strings.Cut(n.Name(), ".ko"); ok {
			byName[strings.ReplaceAll(name, "-", "_")] = n.Name()
		}
	}
	t = tree{}
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		file, ok := byName[name]
		if done[name] || !ok {
			return nil
		}
		done[name] = true
		data, err := decompress(filepath.Join(k.dir, file))
		if err != nil {
			return fmt.Errorf("module %s of %s: %w", name, k.Release, err)
		}
		depends, err := dependsOn(data)
		if err != nil {
			return fmt.Errorf("module %s of %s: %w", name, k.Release, err)
		}
		for _, d := range depends {
			if err := add(d); err != nil {
				return err
			}
		}
		if !signed {
			data = withoutSignature(data)
		}
		t.file("m/"+name+".ko", 0o644, data)
		files = append(files, "/m/"+name+".ko")
		return nil
	}
	for _, w := range wanted {
		if err := add(w); err != nil {
			return nil, nil, err
		}
	}
	return files, t, nil
}

// withoutSignature cuts off the data behind the module: the signature, 12 bytes
// that describe it, the last four of which are its length, and a marker.
func withoutSignature(module []byte) []byte {
	const mark, head = "~Module signature appended~\n", 12
	rest, ok := bytes.CutSuffix(module, []byte(mark))
	if !ok || len(rest) < head {
		return module
	}
	length := uint64(binary.BigEndian.Uint32(rest[len(rest)-4:]))
	rest = rest[:len(rest)-head]
	if length > uint64(len(rest)) {
		return module
	}
	return rest[:uint64(len(rest))-length]
}

func decompress(file string) ([]byte, error) {
	var cmd *exec.Cmd
	switch filepath.Ext(file) {
	case ".xz":
		cmd = exec.Command("xz", "-dc", file)
	case ".zst":
		cmd = exec.Command("zstd", "-dc", file)
	case ".gz":
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	default:
		return os.ReadFile(file)
	}
	return cmd.Output()
}

// dependsOn reads the dependencies from a module.
func dependsOn(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
