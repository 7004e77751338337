package catalog

// latencyBounds are the bounds of all latency histograms, in seconds, as the BPF
// programs count them (bpf/headers/histogram.h). They include the default
// thresholds of the counters, so a counter equals the sum of the buckets above a
// bound.
var latencyBounds = []float64{10e-6, 30e-6, 100e-6, 300e-6, 1e-3, 3e-3, 10e-3, 30e-3, 0.1, 0.3, 1, 10}

// The values of the option histograms.
const (
	HistogramsNode = "node"
	HistogramsPods = "pods"
	HistogramsOff  = "off"
)

// Options of probes that have histograms: probes that know the pod, and probes
// that do not.
var (
	histogramsOption = Option{Key: "histograms", Default: HistogramsNode, OneOf: []string{HistogramsNode, HistogramsPods, HistogramsOff},
		Help: "what distributions are kept for: the node, each pod (30 more series each, and 0.1 to 0.3 us more for each packet or call), or nothing"}
	nodeHistogramsOption = Option{Key: "histograms", Default: HistogramsNode, OneOf: []string{HistogramsNode, HistogramsOff},
		Help: "what distributions are kept for: the node, or nothing"}
)

// perPods is the part of Rises that says how histograms are kept per pod.
const perPods = " One for the node; with the option histograms = \"pods\" one for each pod and the host; values of other namespaces are in that of `unknown`."

// latency declares a latency histogram of a probe.
func latency(name string, labels []string, help, kernel, rises string) Metric {
	return Metric{
		Name: name, Type: Histogram, Scope: PerHost, Extra: true, Unit: "seconds", Bounds: latencyBounds,
		Labels: labels, Help: help, Kernel: kernel, Rises: rises,
	}
}
