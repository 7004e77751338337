// Command grafana writes the dashboards of this folder. Their panels are
// declared in dashboards.go, in terms of the metrics of the Catalogue; `make
// generate` runs it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

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

// dashboard is one dashboard: rows of panels, in the order in which they are
// shown.
type dashboard struct {
	uid, title, about string
	vars              []variable
	rows              []row
}

type row struct {
	title  string
	closed bool // its panels ask nothing until somebody opens it
	panels []panel
}

type panel struct {
	title, about string
	kind         string // timeseries, stat or table
	unit         string
	wide         int // columns of 24; 8 if 0
	high         int // rows; 8 if 0
	targets      []target
	mirrored     string // series whose name matches are drawn below the axis
	stacked      bool
	max          float64
	thresholds   []threshold
}

type threshold struct {
	color string
	from  float64
}

// target is one query and the name that each of its series gets.
type target struct {
	expr, legend string
}

type variable struct {
	name, label, query string
	multi, all         bool
}

// object keeps JSON short; keys come out sorted, so that the files are stable.
type object = map[string]any

var source = object{"type": "prometheus", "uid": "${datasource}"}

// schemaVersion is that of Grafana 12 and 13; older ones read it, too.
const schemaVersion = 42

func render(d dashboard) ([]byte, error) {
	list := []object{{
		"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
		"refresh": 1, "hide": 0, "regex": "", "multi": false, "includeAll": false,
	}}
	for _, v := range d.vars {
		list = append(list, object{
			"name": v.name, "label": v.label, "type": "query", "datasource": source,
			"query":   object{"query": v.query, "refId": "PrometheusVariableQueryEditor-VariableQuery", "qryType": 1},
			"refresh": 2, "sort": 1, "multi": v.multi, "includeAll": v.all, "hide": 0, "regex": "",
		})
		if v.all {
			// .+ in place of every value by name keeps the queries short.
			list[len(list)-1]["allValue"] = ".*"
		}
	}
	out := object{
		"uid": d.uid, "title": d.title, "description": d.about, "tags": []string{"nodeskoop"},
		"schemaVersion": schemaVersion, "version": 1, "editable": true, "graphTooltip": 1,
		"refresh": "30s", "time": object{"from": "now-1h", "to": "now"}, "timezone": "browser", "timepicker": object{},
		"annotations": object{"list": []object{}}, "templating": object{"list": list},
		"links": []object{{
			"type": "dashboards", "title": "nodeskoop", "tags": []string{"nodeskoop"}, "asDropdown": true,
			"includeVars": true, "keepTime": true, "targetBlank": false, "icon": "external link", "tooltip": "", "url": "",
		}},
		"panels": layOut(d.rows),
	}
	b, err := json.MarshalIndent(out, "", " ")
	return append(b, '\n'), err
}

// layOut places the panels of each row from the left, in lines of 24 columns.
func layOut(rows []row) []object {
	var out []object
	id, y := 0, 0
	for _, r := range rows {
		id++
		head := object{"id": id, "type": "row", "title": r.title, "collapsed": r.closed,
			"gridPos": object{"x": 0, "y": y, "w": 24, "h": 1}, "panels": []object{}}
		out = append(out, head)
		y++
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
	}
	return out
}

func (p panel) object(id int, at object) object {
	kind := p.kind
	if kind == "" {
		kind = "timeseries"
	}
	targets := make([]object, len(p.targets))
	for i, t := range p.targets {
		targets[i] = object{
			"refId": string(rune('A' + i)), "datasource": source, "editorMode": "code",
			"expr": t.expr, "legendFormat": t.legend, "range": kind == "timeseries", "instant": kind != "timeseries",
		}
		if kind == "table" {
			targets[i]["format"] = "table"
		}
	}
	steps := []object{{"color": "green", "value": nil}}
	for _, t := range p.thresholds {
		steps = append(steps, object{"color": t.color, "value": t.from})
	}
	defaults := object{
		"unit": p.unit, "mappings": []object{}, "thresholds": object{"mode": "absolute", "steps": steps},
		"color": object{"mode": "palette-classic"},
	}
	overrides := []object{}
	options := object{}
	switch kind {
	case "timeseries":
		defaults["min"] = 0
		if p.mirrored != "" {
			delete(defaults, "min")
			overrides = append(overrides, object{
				"matcher":    object{"id": "byRegexp", "options": p.mirrored},
				"properties": []object{{"id": "custom.transform", "value": "negative-Y"}},
			})
		}
		if p.max != 0 {
			defaults["max"] = p.max
		}
		stacking := object{"mode": "none", "group": "A"}
		fill := 10
		if p.stacked {
			stacking["mode"], fill = "normal", 30
		}
		defaults["custom"] = object{
			"drawStyle": "line", "lineWidth": 1, "fillOpacity": fill, "showPoints": "never", "spanNulls": false,
			"stacking": stacking, "thresholdsStyle": object{"mode": "off"}, "axisPlacement": "auto", "axisLabel": "",
		}
		options = object{
			"legend":  object{"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": []string{"lastNotNull", "max"}},
			"tooltip": object{"mode": "multi", "sort": "desc"},
		}
	case "stat":
		defaults["color"] = object{"mode": "thresholds"}
		options = object{
			"reduceOptions": object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false},
			"colorMode":     "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
		}
	case "table":
		defaults["custom"] = object{"align": "auto", "cellOptions": object{"type": "auto"}, "filterable": true}
		options = object{"showHeader": true, "cellHeight": "sm", "sortBy": []object{{"displayName": "Value", "desc": true}}}
	}
	o := object{
		"id": id, "type": kind, "title": p.title, "description": p.about, "datasource": source, "gridPos": at,
		"targets": targets, "fieldConfig": object{"defaults": defaults, "overrides": overrides}, "options": options,
	}
	if kind == "table" {
		o["transformations"] = []object{{"id": "organize", "options": object{
			"excludeByName": object{"Time": true, "__name__": true, "instance": true, "job": true},
		}}}
	}
	return o
}
