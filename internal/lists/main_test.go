package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWrite adds a probe to a tree whose lists do not have it yet, and removes it
// again.
func TestWrite(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	list := func(dir string) string {
		t.Helper()
		if err := write(root); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(root, dir, listName))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	put("collect/catalog/b.go", "package catalog\n\nvar b = Probe{Name: \"b\"}\n\nvar other = Metric{}\n")
	put("collect/proc/b.go", "package proc\n\nfunc newB(env collect.Env) (collect.Probe, error) { return nil, nil }\n\nfunc newTable(name string) (*table, error) { return nil, nil }\n")
	put("collect/proc/c.go", "package proc\n\nfunc (t typeInfo) newC(collect.Env) (collect.Probe, error) { return nil, nil }\n\nfunc (o other) newD(collect.Env) (collect.Probe, error) { return nil, nil }\n")
	put("collect/proc/b_test.go", "package proc\n\nfunc newFake(collect.Env) (collect.Probe, error) { return nil, nil }\n")
	put("collect/netlink/q.go", "package netlink\n\nfunc newQ(collect.Env) (collect.Probe, error) { return nil, nil }\n")
	put("collect/trace/t.go", "package trace\n\nvar tKind = kind{name: \"t\"}\n")
	put("bpf/t.go", "package bpf\n\nvar t = definition{}\n")
	put("bpf/headers/event.h", "")
	if got := list("collect/catalog"); !strings.Contains(got, "&b,") || strings.Contains(got, "other") {
		t.Errorf("the catalogue's list is\n%s", got)
	}
	if got := list("collect/proc"); !strings.Contains(got, `{Name: "b", New: newB},`) || !strings.Contains(got, "t := newTypeInfo()") || !strings.Contains(got, `{Name: "c", New: t.newC},`) || strings.Contains(got, "newD") || strings.Contains(got, "newTable") || strings.Contains(got, "newFake") {
		t.Errorf("the list of collect/proc is\n%s", got)
	}
	if got := list("bpf"); !strings.Contains(got, `"t": &t,`) {
		t.Errorf("the list of bpf is\n%s", got)
	}
	put("collect/catalog/a.go", "package catalog\n\nvar a = Probe{Name: \"a\", Events: []EventType{{Name: \"Late\"}, {Name: \"A_LOST\"}}}\n")
	if got := list("collect/catalog"); !strings.Contains(got, "&a,") || strings.Index(got, "&a,") > strings.Index(got, "&b,") {
		t.Errorf("a is missing, or not before b:\n%s", got)
	}
	if b, err := os.ReadFile(filepath.Join(root, "bpf/headers/event_types.h")); err != nil || !strings.Contains(string(b), "\tEVENT_NONE,\n\tEVENT_LATE,\n\tEVENT_A_LOST,\n\tEVENT_TYPES,\n") {
		t.Errorf("the types of events are %v\n%s", err, b)
	}
	if err := os.Remove(filepath.Join(root, "collect/catalog/a.go")); err != nil {
		t.Fatal(err)
	}
	if got := list("collect/catalog"); strings.Contains(got, "&a,") {
		t.Errorf("a is gone, and still in\n%s", got)
	}
	if err := os.Remove(filepath.Join(root, "collect/trace/t.go")); err != nil {
		t.Fatal(err)
	}
	if err := write(root); err == nil || !strings.Contains(err.Error(), "collect/trace declares no probe") {
		t.Errorf("a package without probes: %v", err)
	}
}
