package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nodeskoop/internal/testkit/need"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// registers maps the offsets from which a kprobe reads arguments and the return
// value: in struct pt_regs of x86-64, by the psABI's order of argument registers,
// and in struct user_pt_regs of arm64, where they are x0 to x5.
var registers = map[int16]struct {
	name  string
	arm64 int16
}{
	112: {"the first argument", 0},
	104: {"the second argument", 8},
	96:  {"the third argument", 16},
	88:  {"the fourth argument", 24},
	72:  {"the fifth argument", 32},
	64:  {"the sixth argument", 40},
	80:  {"the return value", 0},
}

// TestObjectsOfBothArchitectures compares the committed objects for arm64 with
// those for x86-64, which the other tests run. Programs, maps, constants,
// instructions and relocations must be the same, except for the registers that a
// kprobe reads, which must correspond.
func TestObjectsOfBothArchitectures(t *testing.T) {
	need.Short(t)
	files, err := filepath.Glob("internal/objects/*_x86_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	sources, _ := filepath.Glob("*.bpf.c")
	if len(files) == 0 || len(files) != len(sources) {
		t.Fatalf("%d objects of %d sources: %v", len(files), len(sources), files)
	}
	for _, source := range sources {
		file := strings.TrimSuffix(source, ".bpf.c") + ".go"
		if text, err := os.ReadFile(file); err != nil {
			t.Error(err)
		} else if !regexp.MustCompile(`(?m)^//go:generate internal/objects/bpf2go .* ` + regexp.QuoteMeta(source) + `$`).Match(text) {
			t.Errorf("%s: nothing there makes the object of %s", file, source)
		}
	}
	read := 0
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), "_x86_bpfel.o"), func(t *testing.T) {
			x86, err := ebpf.LoadCollectionSpec(file)
			if err != nil {
				t.Fatal(err)
			}
			arm64, err := ebpf.LoadCollectionSpec(strings.Replace(file, "_x86_", "_arm64_", 1))
			if err != nil {
				t.Fatal(err)
			}
			same(t, "program", x86.Programs, arm64.Programs, func(p *ebpf.ProgramSpec) string {
				return fmt.Sprintln(p.Type, p.AttachType, p.AttachTo, p.SectionName, p.License)
			})
			same(t, "map", x86.Maps, arm64.Maps, func(m *ebpf.MapSpec) string {
				return fmt.Sprintln(m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
			})
			same(t, "constant", x86.Variables, arm64.Variables, func(v *ebpf.VariableSpec) string {
				return fmt.Sprintln(v.SectionName, v.Offset, v.Value)
			})
			for name, p := range x86.Programs {
				q := arm64.Programs[name]
				if q == nil {
					continue // already reported
				}
				if name == "kp_receive" {
					// The program reads the return address, which is on the stack
					// on x86 and in a register on arm64.
					if !reads(p, spOfX86) || !reads(q, lrOfARM64) {
						t.Errorf("%s: the return address is read nowhere", name)
					}
					continue
				}
				if len(p.Instructions) != len(q.Instructions) {
					t.Errorf("%s: %d instructions, %d for arm64", name, len(p.Instructions), len(q.Instructions))
					continue
				}
				for i := range p.Instructions {
					read += sameInstruction(t, fmt.Sprintf("%s, instruction %d", name, i), p, p.Instructions[i], q.Instructions[i])
				}
			}
		})
	}
	if read == 0 {
		t.Error("no kprobe reads a register: this test looks at nothing")
	}
	t.Logf("%d registers read", read)
}

// Offset of sp in struct pt_regs of x86, and of x30 in that of arm64.
const spOfX86, lrOfARM64 = 19 * 8, 30 * 8

// reads reports whether a program loads a word at the offset.
func reads(p *ebpf.ProgramSpec, offset int16) bool {
	return slices.ContainsFunc(p.Instructions, func(i asm.Instruction) bool {
		return i.OpCode.Class() == asm.LdXClass && i.OpCode.Size() == asm.DWord && i.Offset == offset
	})
}

// same fails the test unless two objects have the same members.
func same[T any](t *testing.T, what string, x86, arm64 map[string]T, show func(T) string) {
	t.Helper()
	for name, x := range x86 {
		y, ok := arm64[name]
		switch {
		case !ok:
			t.Errorf("%s %s: not in the object for arm64", what, name)
		case show(x) != show(y):
			t.Errorf("%s %s: %s, for arm64 %s", what, name, show(x), show(y))
		}
	}
	if len(x86) != len(arm64) {
		t.Errorf("%d %ss, %d for arm64", len(x86), what, len(arm64))
	}
}

// sameInstruction compares two instructions. It returns 1 if the instruction reads
// a register of the traced function.
func sameInstruction(t *testing.T, where string, p *ebpf.ProgramSpec, x, y asm.Instruction) int {
	t.Helper()
	// Type numbers differ if one object has more types.
	relocation := func(i asm.Instruction) string {
		text, _, _ := strings.Cut(fmt.Sprint(btf.CORERelocationMetadata(&i)), ", local_id=")
		return text
	}
	if relocation(x) != relocation(y) {
		t.Errorf("%s: relocation %s, for arm64 %s", where, relocation(x), relocation(y))
	}
	if x.Symbol() != y.Symbol() || x.Reference() != y.Reference() {
		t.Errorf("%s: %s %s, for arm64 %s %s", where, x.Symbol(), x.Reference(), y.Symbol(), y.Reference())
	}
	read := 0
	if p.Type == ebpf.Kprobe && x.OpCode.Class() == asm.LdXClass && x.Offset != y.Offset {
		r, ok := registers[x.Offset]
		if !ok || y.Offset != r.arm64 {
			t.Errorf("%s: reads offset %d (%s), for arm64 %d, want %d", where, x.Offset, r.name, y.Offset, r.arm64)
		}
		x.Offset, read = y.Offset, 1
	}
	if x.OpCode != y.OpCode || x.Dst != y.Dst || x.Src != y.Src || x.Offset != y.Offset || x.Constant != y.Constant {
		t.Errorf("%s: %v, for arm64 %v", where, x, y)
	}
	return read
}
