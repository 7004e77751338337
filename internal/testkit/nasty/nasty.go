// Package nasty has names that attack a terminal, and checks output for such attacks.
package nasty

import (
	"unicode"
	"unicode/utf8"
)

// Names are names that a user may give to a pod, a process, a file or a device.
var Names = []string{
	"\x1b]0;pwned\x07x", "\x1b[2J\x1b[1;1H", "a\rb\nc\td", "\u009b31m", "\x7f", "\u202egnp.exe", "\u2028", "\xff\xfe", "\u200b", "e\u0301\u0301\u0301\u0301\u0301", "日本語の名前",
}

// Acts returns the first character of a text of several lines that would affect a terminal;
// -1 if there is none.
func Acts(s string) rune {
	if !utf8.ValidString(s) {
		return utf8.RuneError
	}
	for _, r := range s {
		if r != '\n' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)) {
			return r
		}
	}
	return -1
}
