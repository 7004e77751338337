// Draws one dashboard with Grafana's components, from what Prometheus answers,
// and posts to /drawn what became of each panel.
//
// What of Grafana is in no package is done here as far as the dashboards need
// it: variables, queries, annotations and the grid. The address says what to
// draw: board, theme, rows (closed, or open: the closed rows alone), width,
// from, to, interval (seconds), and var-NAME.
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import * as React from 'react';
import { createRoot } from 'react-dom/client';
import { lastValueFrom } from 'rxjs';
import {
  applyFieldOverrides, createDataFrame, createTheme, DataFrame, dateTime, Field, FieldConfigOptionsRegistry, FieldType, formattedValueToString,
  getFieldDisplayName, getValueFormat, locationUtil, reduceField, standardTransformers, standardTransformersRegistry, ThemeContext, transformDataFrame,
} from '@grafana/data';
import { BigValue, BigValueGraphMode, GlobalStyles, PanelChrome, TimeSeries } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';

const cell = 38, gap = 8, margin = 16, top = 96;

const asked = new URLSearchParams(location.search);
const from = Number(asked.get('from')), to = Number(asked.get('to')), interval = Number(asked.get('interval'));
const theme = createTheme({ colors: { mode: asked.get('theme') === 'light' ? 'light' : 'dark' } });
const timeRange: any = { from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: dateTime(from * 1000), to: dateTime(to * 1000) } };

locationUtil.initialize({ config: { appSubUrl: '' } as any, getVariablesUrlParams: () => ({}), getTimeRangeForUrl: () => ({ from: from * 1000, to: to * 1000 }) as any });
standardTransformersRegistry.setInit(() =>
  ['merge', 'organize'].map((id) => {
    const t = Object.values(standardTransformers).find((t: any) => t.id === id) as any;
    return { id, name: t.name, aliasIds: [], transformation: async () => t, editor: () => null, imageDark: '', imageLight: '' } as any;
  }));

type Result = { metric: Record<string, string>; values?: [number, string][]; value?: [number, string] };

async function prometheus(path: string, params: Record<string, string | number>): Promise<any> {
  const answer = await (await fetch('/api/v1/' + path + '?' + new URLSearchParams(params as any))).json();
  if (answer.status !== 'success') {
    throw new Error(answer.error);
  }
  return answer.data;
}

// Variables

type Variable = { name: string; label: string; text: string; value: string; offered: string[] };

// quoted is a value as Grafana puts it into a regular expression of PromQL.
const quoted = (v: string) => v.replace(/\\/g, '\\\\\\\\').replace(/[$^*{}[\]'+?.()|]/g, '\\\\$&');

async function choose(list: any[]): Promise<Variable[]> {
  const chosen: Variable[] = [];
  for (const v of list) {
    const wanted = asked.getAll('var-' + v.name);
    if (v.type === 'datasource') {
      chosen.push({ name: v.name, label: v.label, text: 'Prometheus', value: 'prometheus', offered: ['prometheus'] });
      continue;
    }
    let offered: string[];
    if (v.type === 'custom') {
      offered = v.query.split(',');
    } else {
      const [, series, label] = /^label_values\((.*), *(\w+)\)$/.exec(v.query.query)!;
      offered = await prometheus(`label/${label}/values`, { 'match[]': substitute(series, chosen), start: from, end: to });
    }
    const all = v.includeAll && wanted.length === 0;
    const values = wanted.length ? wanted : [v.current?.value ?? offered[0]];
    chosen.push({
      name: v.name, label: v.label, offered,
      text: all ? 'All' : values.join(' + '),
      value: all ? v.allValue : v.type === 'custom' ? values[0] : values.length > 1 ? '(' + values.map(quoted).join('|') + ')' : quoted(values[0] ?? ''),
    });
  }
  return chosen;
}

function substitute(text: string, variables: Variable[]): string {
  const known: Record<string, string> = { __rate_interval: 4 * interval + 's', __interval: interval + 's', __range: to - from + 's' };
  variables.forEach((v) => { known[v.name] = v.value; });
  return text.replace(/\$\{?(\w+)\}?/g, (whole, name) => known[name] ?? whole);
}

// replaceIn gives what Grafana puts into the titles and addresses of links.
const replaceIn = (variables: Variable[]) => (text: string, scope?: any): string => {
  const at = scope?.__dataContext?.value;
  return text
    .replace(/\$\{__data\.fields\.([^}]+)\}/g, (whole, name) => {
      const f = at?.frame.fields.find((f: Field) => f.name === name || getFieldDisplayName(f, at.frame) === name);
      return f ? String(f.values[at.rowIndex] ?? '') : whole;
    })
    .replace(/\$\{__field\.labels\.(\w+)\}/g, (whole, name) => at?.field.labels?.[name] ?? whole)
    .replace(/\$\{__url_time_range\}/g, `from=${from * 1000}&to=${to * 1000}`)
    .replace(/\$\{(\w+):queryparam\}/g, (whole, name) => {
      const v = variables.find((v) => v.name === name);
      return v ? `var-${name}=${v.value}` : whole;
    });
};

// Queries

const registry = new FieldConfigOptionsRegistry(() => {
  const item = (id: string, path: string, isCustom: boolean): any => ({ id, path, name: id, isCustom, process: (v: any) => v, shouldApply: () => true, editor: () => null, override: () => null });
  return [
    ...['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'thresholds', 'mappings', 'links', 'color'].map((id) => item(id, id, false)),
    ...['axisLabel', 'axisPlacement', 'axisSoftMax', 'axisSoftMin', 'drawStyle', 'fillOpacity', 'lineWidth', 'showPoints', 'spanNulls', 'stacking',
      'thresholdsStyle', 'transform', 'align', 'cellOptions', 'filterable', 'inspect', 'hideFrom', 'width'].map((id) => item('custom.' + id, id, true)),
  ];
});

const legend = (format: string, labels: Record<string, string>) => format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, l) => labels[l] ?? '');

function seriesFrame(t: any, s: Result): DataFrame {
  const name = legend(t.legendFormat, s.metric), points = s.values ?? [s.value!];
  return createDataFrame({
    refId: t.refId, name, fields: [
      { name: 'Time', type: FieldType.time, config: { interval: interval * 1000 }, values: points.map((p) => p[0] * 1000) },
      { name: 'Value', type: FieldType.number, config: { displayNameFromDS: name }, labels: s.metric, values: points.map((p) => (Number.isNaN(Number(p[1])) ? null : Number(p[1]))) },
    ],
  });
}

// tableFrame has a column for each label and one for the value.
function tableFrame(t: any, series: Result[], alone: boolean): DataFrame {
  const labels = [...new Set(series.flatMap((s) => Object.keys(s.metric)))].sort();
  return createDataFrame({
    refId: t.refId, fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: series.map((s) => s.value![0] * 1000) },
      ...labels.map((l) => ({ name: l, type: FieldType.string, config: {}, values: series.map((s) => s.metric[l] ?? null) })),
      { name: alone ? 'Value' : 'Value #' + t.refId, type: FieldType.number, config: {}, values: series.map((s) => (Number.isNaN(Number(s.value![1])) ? null : Number(s.value![1]))) },
    ],
  });
}

type Drawn = { frames: DataFrame[]; error: string };

async function ask(panel: any, variables: Variable[]): Promise<Drawn> {
  let frames: DataFrame[] = [];
  for (const t of panel.targets) {
    const query = substitute(t.expr, variables);
    const data = t.range
      ? await prometheus('query_range', { query, start: from, end: to, step: interval })
      : await prometheus('query', { query, time: to });
    if (t.format === 'table') {
      if (data.result.length > 0) {
        frames.push(tableFrame(t, data.result, panel.targets.length === 1));
      }
    } else {
      frames.push(...data.result.map((s: Result) => seriesFrame(t, s)));
    }
  }
  if (panel.transformations && frames.length > 0) {
    frames = await lastValueFrom(transformDataFrame(panel.transformations, frames));
  }
  return { error: '', frames: applyFieldOverrides({ data: frames, fieldConfig: panel.fieldConfig, fieldConfigRegistry: registry, replaceVariables: replaceIn(variables), theme, timeZone: 'utc' }) };
}

// Annotations

type Region = { from: number; to: number; color: string };
type Annotation = { name: string; enable: boolean; regions: Region[] };

async function annotate(list: any[], variables: Variable[]): Promise<Annotation[]> {
  const annotations: Annotation[] = [];
  for (const a of list.filter((a) => a.expr)) {
    const data = await prometheus('query_range', { query: substitute(a.expr, variables), start: from, end: to, step: interval });
    const regions: Region[] = [];
    for (const s of data.result as Result[]) {
      let last: Region | undefined;
      for (const [at] of s.values!) {
        if (last && at - last.to <= interval) {
          last.to = at;
        } else {
          regions.push(last = { from: at, to: at, color: theme.visualization.getColorByName(a.iconColor) });
        }
      }
    }
    annotations.push({ name: a.name, enable: a.enable, regions });
  }
  return annotations;
}

function drawRegions(builder: any, regions: Region[]) {
  builder.addHook('draw', (u: any) => {
    const { left, top, width, height } = u.bbox, ctx = u.ctx;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    for (const r of regions) {
      const x0 = u.valToPos(r.from * 1000, 'x', true), x1 = u.valToPos(r.to * 1000, 'x', true);
      ctx.strokeStyle = r.color;
      ctx.setLineDash([4, 4]);
      ctx.beginPath();
      ctx.moveTo(x0, top);
      ctx.lineTo(x0, top + height);
      ctx.stroke();
      ctx.fillStyle = r.color;
      ctx.fillRect(x0, top + height - 4, Math.max(x1 - x0, 2), 4);
    }
    ctx.restore();
  });
}

// Heat maps. Grafana's own is part of its panel, and no component: this one shows the
// same rectangles.

const boundOf = (f: DataFrame) => (f.name === '+Inf' ? Infinity : Number(f.name));

function Heat({ frames, unit, width, height }: { frames: DataFrame[]; unit: string; width: number; height: number }) {
  const rows = [...frames].sort((a, b) => boundOf(a) - boundOf(b));
  const values = rows.map((f) => f.fields[1].values as Array<number | null>);
  const times = rows[0].fields[0].values as number[];
  // Each bucket holds those below it.
  const cells = values.map((v, row) => v.map((n, i) => Math.max(0, (n ?? 0) - (row > 0 ? (values[row - 1][i] ?? 0) : 0))));
  const most = Math.max(...cells.flat(), 1e-9);
  const left = 56, bottom = 18, high = (height - bottom) / rows.length, wide = (width - left) / times.length;
  return (
    <svg width={width} height={height} fontSize={10} fill={theme.colors.text.secondary}>
      {rows.map((f, row) => (
        <text key={row} x={left - 6} y={height - bottom - (row + 0.3) * high} textAnchor="end">{boundOf(f) < Infinity ? formattedValueToString(getValueFormat(unit)(boundOf(f))) : f.name}</text>
      ))}
      {cells.flatMap((line, row) =>
        line.map((n, i) => n > 0 && (
          <rect key={row + '.' + i} x={left + i * wide} y={height - bottom - (row + 1) * high} width={Math.max(wide - 1, 1)} height={Math.max(high - 1, 1)}
            fill={theme.visualization.getColorByName('orange')} fillOpacity={0.1 + 0.9 * Math.sqrt(n / most)} />
        ))
      )}
      <text x={left} y={height - 4}>{new Date(times[0]).toISOString().slice(11, 16)}</text>
      <text x={width} y={height - 4} textAnchor="end">{new Date(times[times.length - 1]).toISOString().slice(11, 16)}</text>
    </svg>
  );
}

// The page

function Figure({ panel, drawn, regions, width, height }: any) {
  const { frames } = drawn;
  const hooked = React.useRef(new Set());
  if (drawn.error || frames.length === 0) {
    return (
      <div style={{ height: '100%', display: 'flex', alignItems: 'center', justifyContent: 'center', color: theme.colors.text.secondary }}>
        {drawn.error || panel.fieldConfig.defaults.noValue?.replace(/^-$/, 'No data') || 'No data'}
      </div>
    );
  }
  if (panel.type === 'timeseries') {
    return (
      <TimeSeries frames={frames} width={width} height={height} timeRange={timeRange} timeZone="utc" legend={panel.options.legend} options={panel.options}>
        {(builder: any) => {
          if (!hooked.current.has(builder)) {
            hooked.current.add(builder);
            drawRegions(builder, regions);
          }
          return null;
        }}
      </TimeSeries>
    );
  }
  if (panel.type === 'heatmap') {
    return <Heat frames={frames} unit={panel.options.yAxis.unit} width={width} height={height} />;
  }
  if (panel.type === 'stat') {
    return (
      <div style={{ display: 'flex' }}>
        {frames.map((f: DataFrame, i: number) => (
          <BigValue key={i} theme={theme} width={width / frames.length} height={height} value={f.fields[1].display!(reduceField({ field: f.fields[1], reducers: ['lastNotNull'] }).lastNotNull)}
            colorMode={panel.options.colorMode} graphMode={BigValueGraphMode.None} />
        ))}
      </div>
    );
  }
  return (
    <TableNG data={frames[0]} width={width} height={height} sortByBehavior="initial" initialSortBy={panel.options.sortBy} sortBy={panel.options.sortBy} cellHeight={panel.options.cellHeight}
      noHeader={!panel.options.showHeader} structureRev={1} timeRange={timeRange} fieldConfig={panel.fieldConfig} getActions={() => []} disableSanitizeHtml={false} transparent={false} {...({} as any)} />
  );
}

type Shown = { panel: any; x: number; y: number };

// arrange lists the panels and the titles of rows, and where they are: all but
// those inside closed rows, or those alone.
function arrange(dashboard: any, open: boolean): Shown[] {
  if (!open) {
    return dashboard.panels.map((panel: any) => ({ panel, x: panel.gridPos.x, y: panel.gridPos.y }));
  }
  const list: Shown[] = [];
  let y = 0;
  for (const row of dashboard.panels.filter((p: any) => p.type === 'row' && p.collapsed)) {
    list.push({ panel: { ...row, collapsed: false }, x: 0, y: y });
    let below = y + 1;
    for (const panel of row.panels) {
      const at = y + panel.gridPos.y - row.gridPos.y;
      list.push({ panel, x: panel.gridPos.x, y: at });
      below = Math.max(below, at + panel.gridPos.h);
    }
    y = below;
  }
  return list;
}

function Picker({ label, text }: { label: string; text: string }) {
  const box = { border: `1px solid ${theme.colors.border.medium}`, padding: '0 8px', height: 30, display: 'flex', alignItems: 'center' };
  return (
    <div style={{ display: 'flex', marginRight: 8 }}>
      <div style={{ ...box, background: theme.colors.background.secondary, borderRight: 0, fontWeight: 500 }}>{label}</div>
      <div style={{ ...box, background: theme.components.input.background }}>{text}</div>
    </div>
  );
}

function Board({ dashboard, shown, variables, drawn, regions, width }: any) {
  const column = (width - 2 * margin + gap) / 24;
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ background: theme.colors.background.canvas, color: theme.colors.text.primary, font: `14px ${theme.typography.fontFamily}`, position: 'relative', width, minHeight: '100vh' }}>
        <div style={{ padding: `12px ${margin}px`, fontSize: 18, fontWeight: 500 }}>{dashboard.title}</div>
        <div style={{ padding: `0 ${margin}px`, display: 'flex', fontSize: 12 }}>
          {variables.map((v: Variable) => <Picker key={v.name} label={v.label} text={v.text} />)}
          {dashboard.annotations.list.filter((a: any) => a.expr).map((a: any) => <Picker key={a.name} label={a.name} text={a.enable ? 'on' : 'off'} />)}
        </div>
        {shown.map(({ panel, x, y }: Shown) => {
          const at = { position: 'absolute' as const, left: margin + x * column, top: top + y * cell };
          if (panel.type === 'row') {
            return <div key={panel.id} style={{ ...at, fontSize: 16, fontWeight: 500, paddingTop: 6 }}>
              {panel.collapsed ? '›' : '⌄'} {panel.title} {panel.collapsed && <span style={{ color: theme.colors.text.secondary, fontSize: 12 }}>({panel.panels.length} panels)</span>}
            </div>;
          }
          return (
            <div key={panel.id} style={at}>
              <PanelChrome title={panel.title} description={panel.description} width={panel.gridPos.w * column - gap} height={panel.gridPos.h * cell - gap}>
                {(w, h) => <Figure panel={panel} drawn={drawn[panel.id]} regions={regions} width={w} height={h} />}
              </PanelChrome>
            </div>
          );
        })}
      </div>
    </ThemeContext.Provider>
  );
}

// What is told of a panel: how many values or rows it shows, what they look like, and
// where its links lead.
function tell({ panel }: Shown, { frames, error }: Drawn) {
  const texts = new Set<string>(), links = new Set<string>(), names = new Set<string>();
  let values = 0;
  for (const frame of frames) {
    if (panel.type === 'table') {
      values += frame.length;
    }
    frame.fields.forEach((field) => {
      if (field.type === FieldType.number) {
        const present = field.values.map((v, i) => [v, i] as const).filter(([v]) => v !== null && v !== undefined);
        values += panel.type === 'table' ? 0 : present.length;
        present.forEach(([v]) => texts.add(formattedValueToString(field.display!(v))));
        names.add(getFieldDisplayName(field, frame, frames));
      }
      if (frame.length > 0 && field.type !== FieldType.time) {
        (field.getLinks?.({ valueRowIndex: frame.length - 1 }) ?? []).forEach((l) => links.add(l.title + ' ' + l.href));
      }
    });
  }
  return { id: panel.id, title: panel.title, kind: panel.type, values, series: frames.length, rows: frames[0]?.length ?? 0, names: [...names], texts: [...texts].slice(0, 200), links: [...links], error };
}

async function main() {
  const dashboard = await (await fetch('/boards/' + asked.get('board') + '.json')).json();
  const variables = await choose(dashboard.templating.list);
  const shown = arrange(dashboard, asked.get('rows') === 'open');
  const drawn: Record<number, Drawn> = {};
  for (const { panel } of shown.filter((s) => s.panel.type !== 'row')) {
    drawn[panel.id] = await ask(panel, variables).catch((e) => ({ frames: [], error: String(e) }));
  }
  const annotations = await annotate(dashboard.annotations.list, variables);
  const regions = annotations.filter((a) => a.enable).flatMap((a) => a.regions);
  const width = Number(asked.get('width'));
  createRoot(document.getElementById('root')!).render(<Board {...{ dashboard, shown, variables, drawn, regions, width }} />);
  await fetch('/drawn', {
    method: 'POST',
    body: JSON.stringify({
      board: dashboard.uid, variables, annotations: annotations.map((a) => ({ name: a.name, count: a.regions.length })),
      panels: shown.filter((s) => s.panel.type !== 'row').map((s) => tell(s, drawn[s.panel.id])),
    }),
  });
}

main();
