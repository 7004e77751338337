package trace

// biolatency has events only.
var biolatencyKind = kind{name: "biolatency"}
