package kernel

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseStall reads the total of a line of a PSI file in microseconds: "some" is how long
// some task was stalled, "full" how long all were at once
// (Documentation/accounting/psi.rst).
func ParseStall(b []byte, line string) (uint64, error) {
	for l := range strings.Lines(string(b)) {
		if !strings.HasPrefix(l, line+" ") {
			continue
		}
		_, text, _ := strings.Cut(l, " total=")
		n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the pressure: %.40q is not a number", text)
		}
		return n, nil
	}
	return 0, fmt.Errorf("read the pressure: there is no line %s", line)
}
