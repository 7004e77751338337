// Command grafana writes the dashboards in this folder. fleet.go, nodes.go, pods.go
// and events.go declare their panels from metrics of the Catalogue and recording
// rules. `make generate` runs it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// metricName matches metrics of the Catalogue in a query, also inside the names of
// recording rules.
var metricName = regexp.MustCompile(`\b(?:kubeskoop|nodeskoop)_[a-z0-9_]+`)

func main() {
	dir := "packaging/grafana"
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	for _, d := range dashboards() {
		b, err := render(d)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, d.uid+".json"), b, 0o644)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "grafana: %s: %v\n", d.uid, err)
			os.Exit(1)
		}
	}
}

func dashboards() []dashboard { return []dashboard{fleet(), nodes(), pods(), events()} }

// dashboard is one dashboard: rows of panels, in display order.
type dashboard struct {
	uid, title, about string
	vars              []variable
	rows              []row
	where             string // selector that restricts its annotations
}

type row struct {
	title  string
	closed bool // collapsed; its panels run no query until a user opens it
	panels []panel
}

type panel struct {
	title, about string
	kind         string // timeseries, stat, table or heatmap
	unit         string
	wide         int // width in columns of 24; 0 means 8
	high         int // height in rows; 0 means 8
	targets      []target
	mirrored     string // regular expression of series to draw below the axis
	stacked      bool
	max          float64
	thresholds   []threshold
	none         string   // text for an empty panel
	columns      []column // columns of a table, in display order
	sorted       []string // sort columns of a table by title, most important first
	links        []link
}

type threshold struct {
	color string
	from  float64
}

// target is a query with the legend of its series.
type target struct {
	expr, legend string
}

// column is a column of a table: a label, or the value of the query at index value.
type column struct {
	title      string
	label      string // label of the series; "" for a value
	value      int
	unit       string
	hidden     bool // only used in links
	wide       int  // pixels; 0 means the remaining width
	links      []link
	thresholds []threshold
}

// link leads to another dashboard or page.
type link struct{ title, url string }

// variable is a choice at the top of a dashboard: from a query's results, or from
// options.
type variable struct {
	name, label, query string
	multi, all         bool
	options            []string
}

// object is a JSON object. Keys are written sorted, so that the files are stable.
type object = map[string]any

var source = object{"type": "prometheus", "uid": "${datasource}"}

// schemaVersion is that of Grafana 12 and 13; older versions read it too.
const schemaVersion = 42

func render(d dashboard) ([]byte, error) {
	list := []object{{
		"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
		"refresh": 1, "hide": 0, "regex": "", "multi": false, "includeAll": false,
	}}
	for _, v := range d.vars {
		list = append(list, v.object())
	}
	out := object{
		"uid": d.uid, "title": d.title, "description": d.about, "tags": []string{"nodeskoop"},
		"schemaVersion": schemaVersion, "version": 1, "editable": true, "graphTooltip": 1,
		"refresh": "30s", "time": object{"from": "now-1h", "to": "now"}, "timezone": "browser", "timepicker": object{},
		"annotations": object{"list": annotations(d.where)}, "templating": object{"list": list},
		"links": []object{{
			"type": "dashboards", "title": "nodeskoop", "tags": []string{"nodeskoop"}, "asDropdown": true,
			"includeVars": true, "keepTime": true, "targetBlank": false, "icon": "external link", "tooltip": "", "url": "",
		}},
		"panels": layOut(d.rows),
	}
	b, err := json.MarshalIndent(out, "", " ")
	return append(b, '\n'), err
}

func (v variable) object() object {
	o := object{"name": v.name, "label": v.label, "hide": 0, "multi": v.multi, "includeAll": v.all}
	if v.options != nil {
		options := make([]object, len(v.options))
		text := ""
		for i, value := range v.options {
			options[i] = object{"text": value, "value": value, "selected": i == 1}
			if i > 0 {
				text += ","
			}
			text += value
		}
		o["type"], o["query"], o["options"] = "custom", text, options
		o["current"] = object{"text": v.options[1], "value": v.options[1]}
		return o
	}
	o["type"], o["datasource"], o["refresh"], o["sort"], o["regex"] = "query", source, 2, 1, ""
	o["query"] = object{"query": v.query, "refId": "PrometheusVariableQueryEditor-VariableQuery", "qryType": 1}
	if v.all {
		// .* instead of a list of all values keeps the queries short
		o["allValue"] = ".*"
		o["current"] = object{"text": []string{"All"}, "value": []string{"$__all"}}
	}
	return o
}

// annotations mark firing alerts in the panels and, on demand, events by kind. Not
// every Grafana supports $__rate_interval here; two minutes contain two samples of
// any supported scrape interval.
func annotations(where string) []object {
	return []object{{
		"builtIn": 1, "datasource": object{"type": "grafana", "uid": "-- Grafana --"}, "enable": true, "hide": true,
		"iconColor": "rgba(0, 211, 255, 1)", "name": "Annotations & Alerts", "type": "dashboard",
	}, {
		"name": "Alerts", "enable": true, "hide": false, "iconColor": "red", "datasource": source,
		"expr": `ALERTS{alertstate="firing", k8s_node!="", ` + where + `}`, "step": "30s",
		"titleFormat": "{{alertname}}", "textFormat": "{{k8s_namespace}}/{{k8s_pod}} on {{k8s_node}}", "tagKeys": "severity",
	}, {
		"name": "Events", "enable": false, "hide": false, "iconColor": "blue", "datasource": source,
		"expr": `sum by (k8s_node, event) (increase(nodeskoop_events_seen_total{` + where + `}[2m]))` +
			` - sum by (k8s_node, event) (increase(nodeskoop_events_ignored_total{` + where + `}[2m])) > 0`,
		"step": "60s", "titleFormat": "{{event}}", "textFormat": "on {{k8s_node}}", "tagKeys": "event",
	}}
}

// layOut places the panels of each row from the left, in lines of 24 columns.
// Panels of a closed row occupy no lines.
func layOut(rows []row) []object {
	var out []object
	id, y := 0, 0
	for _, r := range rows {
		id++
		head := object{"id": id, "type": "row", "title": r.title, "collapsed": r.closed,
			"gridPos": object{"x": 0, "y": y, "w": 24, "h": 1}, "panels": []object{}}
		out = append(out, head)
		y++
		below := y
		x, line := 0, 0
		for _, p := range r.panels {
			w, h := p.wide, p.high
			if w == 0 {
				w = 8
			}
			if h == 0 {
				h = 8
			}
			if x+w > 24 {
				x, y, line = 0, y+line, 0
			}
			id++
			o := p.object(id, object{"x": x, "y": y, "w": w, "h": h})
			if r.closed {
				head["panels"] = append(head["panels"].([]object), o)
			} else {
				out = append(out, o)
			}
			x += w
			line = max(line, h)
		}
		y += line
		if r.closed {
			y = below
		}
	}
	return out
}

// least is the minimum upper end of an axis by unit, so that a line at 0 does not
// get an axis up to 100, which is 10000 % for a share.
var least = map[string]float64{share: 0.01, bytesPerSecond: 1024, octets: 1024, duration: 0.01, count: 4}

func (p panel) object(id int, at object) object {
	kind := p.kind
	if kind == "" {
		kind = "timeseries"
	}
	targets := make([]object, len(p.targets))
	for i, t := range p.targets {
		targets[i] = object{
			"refId": refID(i), "datasource": source, "editorMode": "code",
			"expr": t.expr, "legendFormat": t.legend, "range": kind == "timeseries" || kind == "heatmap", "instant": kind == "stat" || kind == "table",
		}
		if kind == "heatmap" {
			targets[i]["format"] = "heatmap"
		}
		if kind == "table" {
			targets[i]["format"] = "table"
		}
	}
	defaults := object{
		"unit": p.unit, "mappings": []object{}, "thresholds": steps("green", p.thresholds),
		"color": object{"mode": "palette-classic"},
	}
	if p.none != "" {
		defaults["noValue"] = p.none
	}
	if p.links != nil {
		defaults["links"] = links(p.links)
	}
	overrides := []object{}
	options := object{}
	switch kind {
	case "timeseries":
		soft := least[p.unit]
		if soft == 0 {
			soft = 0.1
		}
		custom := object{
			"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": false,
			"stacking": object{"mode": "none", "group": "A"}, "thresholdsStyle": object{"mode": "off"},
			"axisPlacement": "auto", "axisLabel": "", "axisSoftMax": soft,
		}
		defaults["min"], defaults["custom"] = 0, custom
		if p.mirrored != "" {
			delete(defaults, "min")
			custom["axisSoftMin"] = -soft
			overrides = append(overrides, override("byRegexp", p.mirrored, object{"id": "custom.transform", "value": "negative-Y"}))
		}
		if p.max != 0 {
			defaults["max"] = p.max
		}
		if p.links != nil {
			custom["fillOpacity"] = 0 // the areas of many lines would cover each other
		}
		if p.stacked {
			custom["stacking"], custom["fillOpacity"] = object{"mode": "normal", "group": "A"}, 30
		}
		options = object{
			"legend": object{"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": []string{"lastNotNull", "max"},
				"sortBy": "Last *", "sortDesc": true},
			"tooltip": object{"mode": "multi", "sort": "desc"},
		}
	case "heatmap":
		// The fields have the unit of their values; the axis of bounds has its own
		// unit.
		defaults = object{"custom": object{"hideFrom": object{"legend": false, "tooltip": false, "viz": false}, "scaleDistribution": object{"type": "linear"}}}
		if p.none != "" {
			defaults["noValue"] = p.none
		}
		options = object{
			"calculate": false, "cellGap": 1, "cellValues": object{"unit": operations}, "cellRadius": 0,
			"color":        object{"mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "scale": "exponential", "exponent": 0.5, "steps": 64, "reverse": false},
			"yAxis":        object{"axisPlacement": "left", "unit": p.unit, "reverse": false},
			"rowsFrame":    object{"layout": "auto"},
			"exemplars":    object{"color": "rgba(255,0,255,0.7)"},
			"filterValues": object{"le": 1e-9},
			"legend":       object{"show": true},
			"showValue":    "never",
			"tooltip":      object{"mode": "single", "showColorScale": false, "yHistogram": true},
		}
	case "stat":
		if p.unit == share {
			defaults["decimals"] = 2
		}
		defaults["color"] = object{"mode": "thresholds"}
		options = object{
			"reduceOptions": object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false},
			"colorMode":     "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto", "textMode": "value",
		}
	case "table":
		defaults["custom"] = object{"align": "auto", "cellOptions": object{"type": "auto"}, "filterable": true, "inspect": false}
		defaults["noValue"] = "-"
		defaults["color"] = object{"mode": "thresholds"}
		sort := []object{}
		for _, title := range p.sorted {
			sort = append(sort, object{"displayName": title, "desc": true})
		}
		options = object{"showHeader": true, "cellHeight": "sm", "sortBy": sort}
		for _, c := range p.columns {
			overrides = append(overrides, c.override())
		}
	}
	o := object{
		"id": id, "type": kind, "title": p.title, "description": describe(p), "datasource": source, "gridPos": at,
		"targets": targets, "fieldConfig": object{"defaults": defaults, "overrides": overrides}, "options": options,
	}
	if kind == "table" {
		o["transformations"] = p.transformations()
	}
	return o
}

func refID(i int) string { return string(rune('A' + i)) }

func steps(base string, thresholds []threshold) object {
	list := []object{{"color": base, "value": nil}}
	for _, t := range thresholds {
		list = append(list, object{"color": t.color, "value": t.from})
	}
	return object{"mode": "absolute", "steps": list}
}

func links(list []link) []object {
	var out []object
	for _, l := range list {
		out = append(out, object{"title": l.title, "url": l.url, "targetBlank": false})
	}
	return out
}

func override(matcher, what string, properties ...object) object {
	return object{"matcher": object{"id": matcher, "options": what}, "properties": properties}
}

// field returns Grafana's name of a column before it is renamed.
func (c column) field(queries int) string {
	switch {
	case c.label != "":
		return c.label
	case queries == 1:
		return "Value"
	}
	return "Value #" + refID(c.value)
}

func (c column) override() object {
	p := []object{}
	add := func(id string, value any) { p = append(p, object{"id": id, "value": value}) }
	if c.unit != "" {
		add("unit", c.unit)
	}
	if c.wide > 0 {
		add("custom.width", c.wide)
	}
	if c.hidden {
		add("custom.hideFrom", object{"viz": true})
	}
	if c.links != nil {
		add("links", links(c.links))
	}
	if c.thresholds != nil {
		add("thresholds", steps("text", c.thresholds))
		add("custom.cellOptions", object{"type": "color-text"})
	}
	return override("byName", c.title, p...)
}

// transformations join a table's queries by their common labels, and keep the
// declared columns, in order and with their titles.
func (p panel) transformations() []object {
	include, rename, index := object{}, object{}, object{}
	for i, c := range p.columns {
		f := c.field(len(p.targets))
		include[f], rename[f], index[f] = true, c.title, i
	}
	return []object{
		{"id": "merge", "options": object{}},
		{"id": "organize", "options": object{"includeByName": include, "renameByName": rename, "indexByName": index, "excludeByName": object{}}},
	}
}
