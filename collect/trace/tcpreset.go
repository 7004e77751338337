package trace

// tcpreset has events only.
var tcpresetKind = kind{name: "tcpreset"}
