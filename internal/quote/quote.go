// Package quote writes untrusted text (names of pods, interfaces, processes) such that the
// text cannot affect a terminal, a shell or a JSON reader.
package quote

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// All untrusted text (names of processes, interfaces, pods, containers, files and
// devices, and errors that quote them) leaves the program through AppendSafe if a person
// reads it, and through AppendJSON or AppendSafeJSON if a program does. In a command that
// the reader may copy, it passes through Shell.

// maxMarks is the most combining marks that may follow a character. No script needs more,
// and many of them draw over the lines above and below.
const maxMarks = 3

// shows reports whether a character is visible on its own. Not visible are controls (C0,
// DEL, C1), line breaks, spaces other than U+0020, format controls (bidirectional ones
// included), private use, unassigned characters, and letters, marks and selectors without a
// glyph.
func shows(r rune) bool {
	return strconv.IsPrint(r) && !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// AppendSafe appends s such that it can neither affect a terminal nor imitate other text.
// Invisible characters, and marks without a base character, become escapes such as \x1b or
// \u202e; bytes that are not UTF-8 become U+FFFD. The result is one line.
func AppendSafe(b []byte, s string) []byte {
	marks := maxMarks
	for s != "" {
		n := 0
		for n < len(s) && s[n] >= ' ' && s[n] < 0x7f {
			n++
		}
		if n > 0 {
			b, s = append(b, s[:n]...), s[n:]
			marks = 0
			if s == "" {
				break
			}
		}
		r, size := utf8.DecodeRuneInString(s)
		shown := shows(r)
		if shown && unicode.Is(unicode.M, r) {
			marks++
			shown = marks <= maxMarks
		} else {
			marks = 0
		}
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(b, "\uFFFD"...)
		case shown:
			b = append(b, s[:size]...)
		case r < 0x100:
			b = append(b, '\\', 'x', hex[r>>4], hex[r&15])
		default:
			b = append(b, '\\', 'u')
			if r >= 0x10000 {
				b[len(b)-1] = 'U'
				b = append(b, '0', '0', hex[r>>20&15], hex[r>>16&15])
			}
			b = appendHex(b, r)
		}
		s = s[size:]
	}
	return b
}

const hex = "0123456789abcdef"

// appendHex appends the lower 16 bits of r as four digits.
func appendHex(b []byte, r rune) []byte {
	return append(b, hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}

// Safe returns s as AppendSafe writes it.
func Safe(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return string(AppendSafe(nil, s))
		}
	}
	return s
}

// SafeLine is Safe for a text of several lines, such as an error from errors.Join: the
// lines are joined by semicolons.
func SafeLine(s string) string {
	return Safe(strings.ReplaceAll(strings.TrimSpace(s), "\n", "; "))
}

// AppendJSON appends s as a JSON string, which decodes to s, except that bytes that are not
// UTF-8 become U+FFFD. Invisible characters are escaped as \u202e, since JSON may be shown
// on a terminal.
func AppendJSON(b, s []byte) []byte {
	b = append(b, '"')
	for len(s) > 0 {
		n := 0
		for n < len(s) && s[n] >= ' ' && s[n] < 0x7f && s[n] != '"' && s[n] != '\\' {
			n++
		}
		b, s = append(b, s[:n]...), s[n:]
		if len(s) == 0 {
			break
		}
		r, size := utf8.DecodeRune(s)
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r == utf8.RuneError && size == 1:
			b = append(b, "\uFFFD"...)
		case shows(r):
			b = append(b, s[:size]...)
		default:
			b = appendJSONEscape(b, r)
		}
		s = s[size:]
	}
	return append(b, '"')
}

// appendJSONEscape appends r as \u1234, or as a surrogate pair.
func appendJSONEscape(b []byte, r rune) []byte {
	if r >= 0x10000 {
		r -= 0x10000
		b = appendHex(append(b, '\\', 'u'), 0xd800+r>>10)
		r = 0xdc00 + r&0x3ff
	}
	return appendHex(append(b, '\\', 'u'), r)
}

// AppendSafeJSON appends JSON from another encoder, with invisible characters escaped as in
// AppendJSON. Outside its strings JSON is ASCII, so it need not be parsed; line breaks and
// tabs between values stay.
func AppendSafeJSON(b, encoded []byte) []byte {
	for len(encoded) > 0 {
		n := 0
		for n < len(encoded) && encoded[n] < 0x7f {
			n++
		}
		b, encoded = append(b, encoded[:n]...), encoded[n:]
		if len(encoded) == 0 {
			break
		}
		r, size := utf8.DecodeRune(encoded)
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(b, "\uFFFD"...)
		case shows(r):
			b = append(b, encoded[:size]...)
		default:
			b = appendJSONEscape(b, r)
		}
		encoded = encoded[size:]
	}
	return b
}

// Shell returns s as one word of a shell command line, for a command to be copied. It
// quotes only if necessary. If s has invisible characters, or spaces, at which a printed
// line may be broken, it uses escapes as in $'a\x20b', which bash, zsh and ksh understand.
func Shell(s string) string {
	plain, simple := s != "", true
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			c == '/', c == '.', c == '-' && i > 0, c == '_', c == '+', c == ',', c == ':', c == '@', c == '%', c == '=' && i > 0:
		case c <= ' ' || c >= 0x7f || c == '\'' || c == '\\':
			plain, simple = false, false
		default:
			plain = false
		}
	}
	switch {
	case plain:
		return s
	case simple:
		return "'" + s + "'"
	}
	b := []byte("$'")
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\'' || c == '\\':
			b = append(b, '\\', c)
		case c <= ' ' || c >= 0x7f:
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '\''))
}
