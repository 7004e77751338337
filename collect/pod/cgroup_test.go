package pod

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit/need"
)

const (
	id1  = "c3eabb3da3cf6aa60ee378762adce2319be82fb3510777aedb3324c3999def78"
	id2  = "16b13dfef0777f681fec8750e06a3325f4e8f18e687193c29ed7370f136a3953"
	uid1 = "30be040e-d7f8-4170-864a-623dd93b1760"
)

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestParseMountinfo(t *testing.T) {
	for file, want := range map[string][]hierarchy{
		"mountinfo-v2": {
			{true, "rw,nsdelegate,memory_recursiveprot", "/", "/sys/fs/cgroup"},
			{true, "rw,nsdelegate,memory_recursiveprot", "/system.slice", `/srv/a b/cg\roup`},
		},
		"mountinfo-v1": {
			{true, "rw,nsdelegate", "/", "/sys/fs/cgroup/unified"},
			{false, "rw,xattr,name=systemd", "/", "/sys/fs/cgroup/systemd"},
			{false, "rw,net_cls,net_prio", "/", "/sys/fs/cgroup/net_cls,net_prio"},
			{false, "rw,cpu,cpuacct", "/", "/sys/fs/cgroup/cpu,cpuacct"},
			{false, "rw,memory", "/", "/sys/fs/cgroup/memory"},
			{false, "rw,pids", "/", "/sys/fs/cgroup/pids"},
		},
	} {
		got := parseMountinfo(readFile(t, "testdata/"+file))
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(hierarchy{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
	hybrid := parseMountinfo(readFile(t, "testdata/mountinfo-hybrid"))
	v2 := slices.DeleteFunc(slices.Clone(hybrid), func(h hierarchy) bool { return !h.v2 })
	if len(hybrid) != 10 || len(v2) != 1 || v2[0].mount != "/sys/fs/cgroup/unified" {
		t.Errorf("hybrid: %+v", hybrid)
	}
	for _, bad := range []string{
		"", "\n\n", " - cgroup2 cgroup2 rw", "1 2 3 - cgroup2 x", "1 2 0:1 / /m rw - cgroup2 x",
		"1 2 0:1 root /m rw - cgroup2 x rw", "1 2 0:1 / mount rw - cgroup2 x rw", "1 2 0:1 / /m rw - cgroup3 x rw",
	} {
		if got := parseMountinfo([]byte(bad)); len(got) != 0 {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func TestHierarchyDir(t *testing.T) {
	whole, part := hierarchy{root: "/", mount: "/cg"}, hierarchy{root: "/kubepods", mount: "/pods"}
	for _, test := range []struct {
		tree *hierarchy
		path string
		dir  string
		ok   bool
	}{
		{&whole, "/", "/cg", true},
		{&whole, "/a/b", "/cg/a/b", true},
		{&whole, "/a..b/..c", "/cg/a..b/..c", true},
		{&whole, "/../b", "", false},
		{&whole, "/b/..", "", false},
		{&part, "/kubepods", "/pods", true},
		{&part, "/kubepods/x", "/pods/x", true},
		{&part, "/kubepods2/x", "", false},
		{&part, "/x", "", false},
	} {
		if dir, ok := test.tree.dir(test.path); dir != test.dir || ok != test.ok {
			t.Errorf("%s of %+v: %q, %v; want %q, %v", test.path, test.tree, dir, ok, test.dir, test.ok)
		}
	}
}

// layout makes a control group tree as the kernel would show it.
func layout(t *testing.T, mounts map[string]hierarchy, dirs ...string) []hierarchy {
	t.Helper()
	root := t.TempDir()
	var trees []hierarchy
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range mounts {
			if !yield(n) {
				return
			}
		}
	}) {
		h := mounts[name]
		h.root, h.mount = "/", filepath.Join(root, name)
		trees = append(trees, h)
		for _, d := range dirs {
			if err := os.MkdirAll(filepath.Join(h.mount, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return trees
}

func TestFindCgroups(t *testing.T) {
	underscored := strings.ReplaceAll(uid1, "-", "_")
	cgroupfs := "/kubepods/besteffort/pod" + uid1 + "/" + id1
	systemd := "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + underscored + ".slice/cri-containerd-" + id1 + ".scope"
	mixed := "/system.slice/kubepods-pod" + underscored + ".slice:cri-containerd:" + id1
	nested := "/kubelet.slice/x/kubepods/pod" + uid1 + "/" + id1
	v2 := map[string]hierarchy{"cg": {v2: true, options: "rw,nsdelegate"}}
	v1 := map[string]hierarchy{
		"memory":  {options: "rw,memory"},
		"pids":    {options: "rw,pids"},
		"cpu":     {options: "rw,cpu,cpuacct"},
		"systemd": {options: "rw,xattr,name=systemd"},
		"hybrid":  {v2: true, options: "rw"},
	}
	shim := "0::/system.slice/containerd.service\n"
	for _, test := range []struct {
		name        string
		mounts      map[string]hierarchy
		file, outer string
		id          string
		dir         string // below the mount point
		paths       []string
		v2          bool
	}{
		{"v2 cgroupfs", v2, "0::" + cgroupfs + "\n", shim, id1, "cg" + cgroupfs, []string{cgroupfs}, true},
		{"v2 systemd", v2, "0::" + systemd + "\n", shim, id1, "cg" + systemd, []string{systemd}, true},
		{"v2 colons", v2, "0::" + mixed + "\n", shim, id1, "cg" + mixed, []string{mixed}, true},
		{"v2 nested", v2, "0::" + nested + "\n", shim, id1, "cg" + nested, []string{nested}, true},
		{"v2 deleted", v2, "0::" + cgroupfs + " (deleted)\n", shim, id1, "cg" + cgroupfs, []string{cgroupfs}, true},
		{"v2 custom", v2, "0::/custom/group\n", shim, "web", "cg/custom/group", []string{"/custom/group"}, true},
		{"v2 shim's own", v2, shim, shim, "web", "", nil, false},
		{"v2 root", v2, "0::/\n", shim, "web", "", nil, false},
		{"v2 without its shim", v2, "0::/custom/group\n", "", "web", "", nil, false},
		{"v2 outside", v2, "0::/../../kubepods/" + id1 + "\n", shim, id1, "", []string{"/../../kubepods/" + id1}, false},
		{"v1", v1, "9:name=systemd:" + systemd + "\n8:cpuacct,cpu:" + systemd + "\n4:pids:" + systemd + "\n3:memory:" + systemd + "\n0::/system.slice/containerd.service\n",
			"9:name=systemd:/system.slice/containerd.service\n" + shim, id1, "pids" + systemd, []string{systemd}, false},
		{"v1 without pids", v1, "9:name=systemd:" + systemd + "\n8:cpuacct,cpu:" + systemd + "\n4:pids:/system.slice/containerd.service\n3:memory:" + systemd + "\n",
			"4:pids:/system.slice/containerd.service\n", id1, "memory" + systemd, []string{systemd}, false},
		{"v1 one controller", v1, "8:cpu,cpuacct:" + cgroupfs + "\n4:pids:/\n0::/\n", shim, id1, "cpu" + cgroupfs, []string{cgroupfs}, false},
		{"v1 not mounted", v1, "8:hugetlb:" + cgroupfs + "\n", shim, id1, "", []string{cgroupfs}, false},
		{"v1 two places", v1, "8:cpu:" + cgroupfs + "\n4:pids:" + nested + "\n", shim, id1, "pids" + nested, []string{cgroupfs, nested}, false},
		{"hybrid", v1, "4:pids:" + cgroupfs + "\n0::" + cgroupfs + "\n", shim, id1, "hybrid" + cgroupfs, []string{cgroupfs}, true},
		{"empty", v1, "", shim, id1, "", nil, false},
		{"torn", v1, "4:pids\n::\n0:\nx\n4:pids:relative\n4:pids:" + cgroupfs, shim, id1, "pids" + cgroupfs, []string{cgroupfs}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			trees := layout(t, test.mounts, cgroupfs, systemd, mixed, nested, "/custom/group", "/system.slice/containerd.service")
			got := findCgroups(trees, []byte(test.file), []byte(test.outer), test.id)
			dir := ""
			if test.dir != "" {
				dir = filepath.Join(filepath.Dir(trees[0].mount), test.dir)
			}
			if hidden := dir == "" && len(test.paths) > 0; got.hidden != hidden {
				t.Errorf("hidden: %v, want %v", got.hidden, hidden)
			}
			if got.dir != dir || !slices.Equal(got.paths, test.paths) || (got.id != 0) != test.v2 {
				t.Errorf("got %+v, want directory %s, paths %q, v2 %v", got, dir, test.paths, test.v2)
			}
			if test.v2 && got.id != inodeOf(t, dir) {
				t.Errorf("number %d, want %d", got.id, inodeOf(t, dir))
			}
		})
	}
}

// TestOwner finds the owner of a /proc/PID/cgroup. Only whole paths that containerd gave
// count; the same name elsewhere does not.
func TestOwner(t *testing.T) {
	x := newIndex("/proc")
	underscored := strings.ReplaceAll(uid1, "-", "_")
	slice := "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + underscored + ".slice"
	static := "/kubepods/pod86f3b7b7a1c1c1c1c1c1c1c1c1c1c1c1"
	put := func(name, uid string, paths ...string) {
		var tr traces
		for _, p := range paths {
			tr.addPath(p, uid)
		}
		x.put(key{"k8s.io", name}, &owner.Pod{ID: name, Name: name}, running, tr, now)
	}
	put("pod", uid1, "/kubepods/besteffort/pod"+uid1+"/"+id1, slice+"/cri-containerd-"+id1+".scope", "/a/kubepods-pod"+underscored+".slice:cri-containerd:"+id1)
	put("static", "86f3b7b7a1c1c1c1c1c1c1c1c1c1c1c1", static+"/"+strings.Repeat("b", 64))
	put("plain", "", "/default/web")
	put("inner", "", "/kubepods/besteffort/pod"+uid1+"/"+id1+"/docker/"+id2)
	user := "/user.slice/user-1000.slice/user@1000.service"
	for file, want := range map[string]string{
		"0::/kubepods/besteffort/pod" + uid1 + "/" + id1:         "pod",
		"0::/kubepods/besteffort/pod" + uid1:                     "pod",
		"0::/kubepods/besteffort/pod" + uid1 + "/unknown/deeper": "pod",
		"0::" + slice + "/cri-containerd-" + id1 + ".scope":      "pod",
		"0::" + slice: "pod",
		"0::" + slice + "/cri-containerd-" + id2 + ".scope":                                     "pod",
		"0::/a/kubepods-pod" + underscored + ".slice:cri-containerd:" + id1:                     "pod",
		"0::/a/kubepods-pod" + underscored + ".slice:cri-containerd:" + id1 + "/init.scope":     "pod",
		"0::/kubepods/besteffort/pod" + uid1 + "/" + id1 + "/docker/" + strings.Repeat("a", 64): "pod",
		"0::/kubepods/besteffort/pod" + uid1 + "/" + id1 + "/docker/" + id2:                     "inner",
		"12:pids:/\n4:memory:/kubepods/besteffort/pod" + uid1 + "/" + id1 + "\n0::/":            "pod",
		"0::" + static + "/" + strings.Repeat("c", 64):                                          "static",
		"0::" + static:              "static",
		"0::/default/web":           "plain",
		"0::/default/web/below/it":  "plain",
		"0::/default/web (deleted)": "plain",
		// Users with a delegated group may give any names below it.
		"0::" + user + "/pod" + uid1:                                 "",
		"0::" + user + "/" + id1:                                     "",
		"0::" + user + "/cri-containerd-" + id1 + ".scope":           "",
		"0::" + user + slice + "/cri-containerd-" + id1 + ".scope":   "",
		"0::" + user + "/kubepods/besteffort/pod" + uid1 + "/" + id1: "",
		"0::" + user + "/default/web":                                "",
		"0::/default/web2/" + id1:                                    "",
		static + "/x/pod" + uid1 + "/" + id1:                         "",
		"0::" + static + "/x/pod" + uid1 + "/" + id1:                 "static",
		"0::/kubepods/burstable/pod" + uid1:                          "",
		"0::/default/webs":                                           "",
		"0::/default":                                                "",
		"0::/":                                                       "",
		"0::/kubepods/besteffort":                                    "",
		"0::/kubepods/besteffort/pod":                                "",
		"0::/kubepods.slice/kubepods-pod.slice":                      "",
		"0::/system.slice/podman.service":                            "",
		"0::/" + id1 + "0":                                           "",
		"":                                                           "",
		"0::":                                                        "",
	} {
		got := ""
		if r := x.ownerOf([]byte(file + "\n")); r != nil {
			got = r.pod.Name
		}
		if got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}

// TestMovedBelow: the first process of a container has moved to a group of its own making.
// The container's group is the outermost with its name, in each layout and in nested
// containers.
func TestMovedBelow(t *testing.T) {
	underscored := strings.ReplaceAll(uid1, "-", "_")
	scope := "/kubepods.slice/kubepods-pod" + underscored + ".slice/cri-containerd-" + id1 + ".scope"
	fs := "/kubepods/besteffort/pod" + uid1 + "/" + id1
	colons := "/system.slice/kubepods-pod" + underscored + ".slice:cri-containerd:" + id1
	inner := fs + "/docker/" + id2
	dirs := []string{"/init.scope", "/system.slice/a.service", "/docker/" + id2, "/" + id1, "/a/" + id1 + "/b"}
	shim := "0::/system.slice/containerd.service\n"
	v2 := map[string]hierarchy{"cg": {v2: true, options: "rw,nsdelegate"}}
	hybrid := map[string]hierarchy{
		"hybrid": {v2: true, options: "rw"}, "memory": {options: "rw,memory"}, "pids": {options: "rw,pids"}, "systemd": {options: "rw,xattr,name=systemd"},
	}
	for _, test := range []struct {
		name   string
		mounts map[string]hierarchy
		file   string // the container's own group is written @
		own    string
		id     string
		groups []string
	}{
		{"systemd, v2", v2, "0::@/init.scope\n", scope, id1, nil},
		{"systemd, v2, by the record", v2, "0::@/init.scope\n", scope, id1, specGroups("kubepods-pod" + underscored + ".slice:cri-containerd:" + id1)},
		{"a service, v2 cgroupfs", v2, "0::@/system.slice/a.service\n", fs, id1, nil},
		{"colons", v2, "0::@/init.scope\n", colons, id1, nil},
		{"docker in a pod", v2, "0::@/docker/" + id2 + "\n", fs, id1, nil},
		{"a container that docker runs in a pod", v2, "0::@/init.scope\n", inner, id2, nil},
		{"by the record, in a pod", v2, "0::@/init.scope\n", inner, id2, specGroups("/docker/" + id2)},
		{"a group with its own ID", v2, "0::@/" + id1 + "\n", fs, id1, nil},
		{"and one more", v2, "0::@/a/" + id1 + "/b\n", scope, id1, nil},
		{"not moved", v2, "0::@\n", scope, id1, nil},
		{"v1, systemd's tree only", hybrid, "9:name=systemd:@/init.scope\n4:pids:@\n3:memory:@\n0::/system.slice/containerd.service\n", fs, id1, nil},
		{"v1, all trees", hybrid, "9:name=systemd:@/init.scope\n4:pids:@/init.scope\n3:memory:@/a/" + id1 + "/b\n", fs, id1, nil},
		{"hybrid", hybrid, "9:name=systemd:@/init.scope\n4:pids:@\n0::@/init.scope\n", scope, id1, nil},
		{"a plain container", v2, "0::@/init.scope\n", "/default/web", "web", specGroups("/default/web")},
		{"a plain container and its namespace have one name", v2, "0::@/init.scope\n", "/web/web", "web", specGroups("/web/web")},
		{"without a record", v2, "0::@/init.scope\n", "/web/web", "web", nil},
		{"a custom group", v2, "0::@/init.scope\n", "/my/own", "web", specGroups("/my/own")},
		{"a unit of ctr", v2, "0::@/init.scope\n", "/a.slice/a-b.slice/nerdctl-web.scope", "web", specGroups("a-b.slice:nerdctl:web")},
		{"in a machine of its own", v2, "0::@/init.scope\n", "/docker/" + id2 + fs, id1, specGroups(fs)},
	} {
		t.Run(test.name, func(t *testing.T) {
			groups := []string{"/system.slice/containerd.service"}
			for _, d := range append([]string{""}, dirs...) {
				groups = append(groups, test.own+d)
			}
			trees := layout(t, test.mounts, groups...)
			found := findCgroups(trees, []byte(strings.ReplaceAll(test.file, "@", test.own)), []byte(shim), test.id, test.groups...)
			if !slices.Equal(found.paths, []string{test.own}) || !strings.HasSuffix(found.dir, test.own) {
				t.Fatalf("%+v, want %s", found, test.own)
			}
			// Every group below is the container's.
			for _, d := range []string{"/docker", "/system.slice", "/a", "/a/" + id1} {
				if err := os.WriteFile(found.dir+d+"/cgroup.procs", nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for i, d := range append([]string{""}, dirs...) {
				if err := os.WriteFile(found.dir+d+"/cgroup.procs", fmt.Appendf(nil, "%d\n", 100+i), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := appendProcesses(found.dir, nil)
			if slices.Sort(got); err != nil || !slices.Equal(got, []int{100, 101, 102, 103, 104, 105}) {
				t.Errorf("processes %v, %v", got, err)
			}
		})
	}
}

func TestSpecGroups(t *testing.T) {
	for path, want := range map[string][]string{
		"":                             nil,
		"/":                            nil,
		"/default/web":                 {"/default/web"},
		"/default/web/":                {"/default/web"},
		"relative":                     {"/relative"},
		"/a/../b":                      nil,
		"../b":                         nil,
		"kubepods-podx.slice:cri:1":    {"/kubepods.slice/kubepods-podx.slice/cri-1.scope", "/kubepods-podx.slice:cri:1"},
		"a-b-c.slice::x":               {"/a.slice/a-b.slice/a-b-c.slice/x.scope", "/a-b-c.slice::x"},
		":runc:x":                      {"/system.slice/runc-x.scope", "/:runc:x"},
		"-.slice:p:n":                  {"/p-n.scope", "/-.slice:p:n"},
		"a.slice:p:b.slice":            {"/a.slice/b.slice", "/a.slice:p:b.slice"},
		"no:three":                     {"/no:three"},
		"nota:p:n":                     {"/nota:p:n"},
		"/kubepods/pod1.slice:cri:1/x": {"/kubepods/pod1.slice:cri:1/x"},
	} {
		if got := specGroups(path); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func TestAppendProcesses(t *testing.T) {
	root := t.TempDir()
	write := func(dir, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, "cgroup.procs"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var many strings.Builder
	for pid := range 5000 {
		fmt.Fprintln(&many, 10000+pid)
	}
	write("c", "3\n1\n")
	write("c/a", "7\n")
	write("c/a/deep", "0\n0\n5\n7\n")
	write("c/b", many.String())
	write("d", "")
	if err := os.Mkdir(filepath.Join(root, "c", "nofile"), 0o755); err != nil {
		t.Fatal(err)
	}
	x := newIndex("/proc")
	p := &owner.Pod{Cgroups: []string{root + "/c", root + "/d", root + "/vanished", root + "/c/a"}}
	got, err := x.Processes(p, []int{99})
	if err != nil || len(got) != 1+5+5000-1 || !slices.Equal(got[:5], []int{99, 1, 3, 5, 7}) || !slices.IsSorted(got[1:]) {
		t.Errorf("%d processes, %v: %v", len(got), err, got[:min(8, len(got))])
	}
	// Without a control group, only the first processes are known.
	if got, err := x.Processes(&owner.Pod{PIDs: []int{4, 2}}, nil); err != nil || !slices.Equal(got, []int{4, 2}) {
		t.Errorf("without control groups: %v, %v", got, err)
	}
	// An unreadable group does not hide the processes of the others.
	if err := os.Remove(filepath.Join(root, "d", "cgroup.procs")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "d", "cgroup.procs"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err = x.Processes(&owner.Pod{Cgroups: []string{root + "/d", root + "/c/a"}}, nil)
	if !errors.Is(err, unix.EISDIR) || !strings.Contains(err.Error(), root+"/d") || !slices.Equal(got, []int{5, 7}) {
		t.Errorf("with one that cannot be read: %v, %v", got, err)
	}
}

// TestUnified uses a real process in real v2 control groups.
func TestUnified(t *testing.T) {
	need.Root(t)
	mount := v2Mount(t)
	need.Kernel(t, mount != "", "the v2 control groups are not mounted")
	name := fmt.Sprintf("/nodeskoop-test-%d", os.Getpid())
	group := name + "/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uid1, "-", "_") + ".slice/cri-containerd-" + id1 + ".scope"
	below := group + "/init.scope"
	if err := os.MkdirAll(mount+below, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for dir := below; len(dir) >= len(name); dir = filepath.Dir(dir) {
			if err := unix.Rmdir(mount + dir); err != nil && err != unix.ENOENT {
				t.Errorf("remove %s: %v", mount+dir, err)
			}
		}
	})
	pid := cmd.Process.Pid
	move := func(dir string) {
		t.Helper()
		if err := os.WriteFile(mount+dir+"/cgroup.procs", fmt.Append(nil, pid), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	move(group)
	trees := parseMountinfo(readFile(t, "/proc/self/mountinfo"))
	found := findCgroups(trees, readFile(t, fmt.Sprintf("/proc/%d/cgroup", pid)), readFile(t, "/proc/self/cgroup"), id1)
	if found.dir != mount+group || !slices.Equal(found.paths, []string{group}) || found.id != inodeOf(t, mount+group) {
		t.Fatalf("control groups %+v, want %s with number %d", found, mount+group, inodeOf(t, mount+group))
	}
	x := newIndex("/proc")
	for i := range trees {
		if trees[i].v2 {
			x.unified.Store(&trees[i])
			break
		}
	}
	pod := &owner.Pod{ID: "p", Cgroups: []string{found.dir}}
	x.put(key{"k8s.io", "p"}, pod, running, traces{groups: []uint64{found.id}, paths: found.paths}, now)
	check := func(want ...int) {
		t.Helper()
		if got, err := x.Processes(pod, nil); err != nil || !slices.Equal(got, want) {
			t.Errorf("processes %v, %v; want %v", got, err, want)
		}
		if p := x.ByPID(pid); (p == pod) != (len(want) > 0) {
			t.Errorf("the process is %s", label(p))
		}
	}
	check(pid)
	move(below)
	check(pid)
	for _, dir := range []string{group, below} {
		if x.ByCgroup(inodeOf(t, mount+dir)) != pod {
			t.Errorf("%s is not found by its number", dir)
		}
	}
	for _, dir := range []string{"", name} {
		if p := x.ByCgroup(inodeOf(t, mount+dir)); p != nil {
			t.Errorf("%s/ is said to be %s's", dir, label(p))
		}
	}
	gone := inodeOf(t, mount+below)
	move(name)
	check()
	if err := unix.Rmdir(mount + below); err != nil {
		t.Fatal(err)
	}
	if p := x.ByCgroup(gone); p != nil {
		t.Errorf("a control group that is gone is said to be %s's", label(p))
	}
}

func FuzzCgroup(f *testing.F) {
	f.Add([]byte("0::/kubepods/pod"+uid1+"/"+id1+"\n"), []byte("0::/\n"), "web")
	f.Add([]byte("9:name=systemd:/a.slice:cri-containerd:"+id1+" (deleted)\n8:cpu,cpuacct:/"), []byte(""), id1)
	f.Add([]byte("::::\n\n:"), []byte("0"), "")
	trees := []hierarchy{{v2: true, root: "/", mount: "/nonexistent"}, {options: "rw,pids", root: "/x", mount: "/nonexistent"}}
	f.Fuzz(func(t *testing.T, file, outer []byte, id string) {
		for _, p := range findCgroups(trees, file, outer, id, specGroups(string(outer))...).paths {
			if p[0] != '/' || strings.ContainsRune(p, '\n') {
				t.Errorf("path %q", p)
			}
		}
		x := newIndex("/proc")
		x.put(key{"a", "b"}, &owner.Pod{}, running, traces{paths: []string{"/a/" + id1}}, now)
		x.ownerOf(file)
		if got := containerID(file); got != nil && len(got) != 64 {
			t.Errorf("container ID %q", got)
		}
	})
}

func FuzzMountinfo(f *testing.F) {
	for _, name := range []string{"v1", "v2", "hybrid"} {
		f.Add(readFile(f, "testdata/mountinfo-"+name))
	}
	f.Add([]byte(`1 2 0:1 /\04 /a\999\ rw - cgroup2 x rw`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, h := range parseMountinfo(data) {
			if h.root == "" || h.root[0] != '/' || h.mount != "" && h.mount[0] != '/' {
				t.Errorf("%+v", h)
			}
			if dir, ok := h.dir("/a"); ok && !strings.HasPrefix(dir, h.mount) {
				t.Errorf("%q of %+v", dir, h)
			}
		}
	})
}

func FuzzProcs(f *testing.F) {
	f.Add([]byte("1\n22\n333\n"))
	f.Add([]byte("0\n99999999999999999999\nx1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, pid := range appendNumbers(nil, data) {
			if pid <= 0 {
				t.Errorf("process %d", pid)
			}
		}
	})
}
