package main

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// programs are the packages of the programs that the tests use.
var programs = []string{
	"dash", "coreutils", "grep", "sed", "mawk", "util-linux", "mount", "procps", "kmod", "libc-bin",
	"iproute2", "ethtool", "nftables", "iptables", "conntrack", "ipvsadm", "iperf3", "busybox-static", "e2fsprogs",
}

// leftOut lists files that nothing in a test VM reads.
var leftOut = []string{
	"usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bash-completion",
	"usr/share/bug", "usr/share/perl", "usr/share/i18n", "usr/share/zsh", "usr/share/gcc", "usr/include", "usr/games",
	"usr/share/perl5", "usr/share/debconf", "usr/share/initramfs-tools", "usr/lib/locale", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/aarch64-linux-gnu/gconv",
	"usr/lib/systemd", "var", "etc/init.d", "etc/pam.d", "etc/security",
}

// userlandFormat changes when the archive is built differently.
const userlandFormat = "1"

// fetchUserland returns the archive with the programs. All come from Debian for the
// VM's architecture, so they do not depend on this machine's.
func fetchUserland(cache string, a func() (*apt, error), arch string) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(append([]string{userlandFormat}, programs...), " ") + strings.Join(leftOut, " ")))
	file := filepath.Join(cache, arch, fmt.Sprintf("userland-%x.cpio", sum[:6]))
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	archive, err := a()
	if err != nil {
		return "", err
	}
	packages, err := archive.closure(programs)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(os.Stderr, "downloading %d packages for the VMs' programs\n", len(packages))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(file), "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	debs, err := archive.download(tmp, packages)
	if err != nil {
		return "", err
	}
	t := tree{}
	for _, deb := range debs {
		if err := unpack(deb, t.take); err != nil {
			return "", err
		}
	}
	t.finish()
	out, err := os.Create(filepath.Join(tmp, "userland"))
	if err != nil {
		return "", err
	}
	if err := errors.Join(t.write(out), out.Close()); err != nil {
		return "", err
	}
	return file, os.Rename(out.Name(), file)
}

// take puts a file of a package in its place, with /usr merged.
func (t tree) take(h *tar.Header, r io.Reader) error {
	name := merged(h.Name)
	for _, l := range leftOut {
		if name == l || strings.HasPrefix(name, l+"/") {
			return nil
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		if path.Ext(name) == ".a" {
			return nil
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		t.file(name, uint32(h.Mode&0o7777), data)
	case tar.TypeSymlink:
		t.link(name, h.Linkname)
	case tar.TypeLink:
		e, ok := t[merged(h.Linkname)]
		if !ok {
			return fmt.Errorf("%s links to %s, which is not there", h.Name, h.Linkname)
		}
		t[name] = e
	}
	return nil
}

func merged(name string) string {
	name = strings.TrimPrefix(path.Clean(name), "/")
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if name == d || strings.HasPrefix(name, d+"/") {
			return "usr/" + name
		}
	}
	return name
}

// finish adds what the packages' installation scripts would have created.
func (t tree) finish() {
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		t.link(d, "usr/"+d)
		if _, ok := t["usr/"+d]; !ok {
			t.dir("usr/" + d)
		}
	}
	t.link("usr/bin/sh", "dash")
	t.link("usr/bin/awk", "mawk")
	for _, n := range []string{"iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"} {
		t.link("usr/sbin/"+n, "xtables-nft-multi")
	}
	t.link("var/run", "/run")
	t.link("var/lock", "/run/lock")
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root", "var/lib", "var/tmp", "mnt", "m", "t"} {
		t.dir(d)
	}
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	t.file("etc/hosts", 0o644, []byte("127.0.0.1 localhost\n::1 localhost\n"))
	t.file("etc/hostname", 0o644, []byte("testvm\n"))
}
