// Package soak runs the daemon for a long time among neighbours that come, go
// and misbehave, and demands that it holds on to nothing: `make soak
// DURATION=1h`. It is no part of `make test`.
package soak
