package config

import "fmt"

// Limits of a configuration file. Existing keys are at most three levels deep, and
// the shipped file has some 10 KiB. The TOML library's memory grows with the square
// of the depth.
const (
	maxConfigSize  = 256 << 10
	maxConfigDepth = 8
	maxMistakes    = 20 // maximum number of mistakes in one message
)

// checkShape rejects excessively nested text before parsing. It knows only enough
// TOML to count brackets and the dots of keys outside strings and comments; the
// parser reports invalid TOML.
func checkShape(file, text string) error {
	line, depth, dots := 1, 0, 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '\n':
			line, dots = line+1, 0
		case '#':
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case '"', '\'':
			end, lines := endOfString(text, i)
			i, line = end, line+lines
		case '[', '{':
			depth, dots = depth+1, 0
		case ']', '}':
			depth = max(0, depth-1)
		case '=', ',':
			dots = 0
		case '.':
			dots++
		}
		if depth > maxConfigDepth || dots > maxConfigDepth {
			return fmt.Errorf("%s:%d: nested more than %d deep, which no key of the configuration is; nodeskoop config --default prints what there is", file, line, maxConfigDepth)
		}
	}
	return nil
}

// endOfString returns the end of the string that begins at i: the index of its
// closing quote, or of the last byte if it is not closed. lines is the number of
// newlines in it.
func endOfString(text string, i int) (end, lines int) {
	quote := text[i]
	if len(text) >= i+3 && text[i+1] == quote && text[i+2] == quote {
		for j := i + 3; j < len(text); j++ {
			switch {
			case text[j] == '\n':
				lines++
			case text[j] == '\\' && quote == '"':
				if j++; j < len(text) && text[j] == '\n' {
					lines++
				}
			case text[j] == quote && len(text) >= j+3 && text[j+1] == quote && text[j+2] == quote:
				// A multi-line string may end with up to two more quotes.
				for j += 2; j+1 < len(text) && text[j+1] == quote; j++ {
				}
				return j, lines
			}
		}
		return len(text) - 1, lines
	}
	for j := i + 1; j < len(text); j++ {
		switch {
		case text[j] == '\n':
			return j - 1, 0 // a string ends at the end of its line
		case text[j] == '\\' && quote == '"':
			j++
			if j < len(text) && text[j] == '\n' {
				return j - 1, 0
			}
		case text[j] == quote:
			return j, 0
		}
	}
	return len(text) - 1, 0
}
