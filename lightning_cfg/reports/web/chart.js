// A metric against the guidance scale: the chosen method in colour, the others grey.
function drawChart(found, chosen) {
  const metric = found.metrics.find((one) => one.key === chosen.metric);
  const place = byId('chart');
  if (!metric) return place.replaceChildren();
  const width = Math.min(860, place.clientWidth || 860);
  const height = Math.max(260, Math.round(width * 0.45));
  const box = { left: 66, right: width - 14, top: 12, bottom: height - 40 };

  const real = found.averages.find((row) => row.stage === 'real');
  const floor = real ? real.values[metric.key] : undefined;
  const line = (method, flow) =>
    found.averages
      .filter((row) => row.method === method && row.flow === flow && row.stage !== 'real')
      .filter((row) => typeof row.values[metric.key] === 'number')
      .sort((a, b) => a.scale - b.scale);
  const before = line(chosen.method, '');
  const after = chosen.flow ? line(chosen.method, chosen.flow) : [];
  const others = found.methods
    .filter(({ key }) => key !== chosen.method)
    .map(({ key }) => line(key, ''));

  // the range is that of what is chosen; the others may leave it
  const ends = (row) => {
    const half = row.half[metric.key] || 0;
    return [row.values[metric.key] - half, row.values[metric.key] + half];
  };
  const shown = [...before, ...after];
  let values = shown.flatMap(ends);
  if (typeof floor === 'number') values.push(floor);
  if (!values.length) values = others.flat().flatMap(ends);
  if (!values.length) values = [0, 1];
  const middle = shown.map((row) => row.values[metric.key]);
  const positive = middle.length > 0 && Math.min(...middle, floor ?? Infinity) > 0;
  const logarithmic = positive && Math.max(...middle) > 5 * Math.min(...middle, floor ?? Infinity);
  if (logarithmic) values = values.filter((value) => value > 0);
  const scaled = logarithmic ? Math.log10 : (value) => value;
  let [low, high] = [Math.min(...values), Math.max(...values)].map(scaled);
  const margin = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [low - margin, high + margin];
  const scales = [...before, ...after, ...(shown.length ? [] : others.flat())].map((r) => r.scale);
  let [first, last] = [Math.min(...scales), Math.max(...scales)];
  if (first === last) [first, last] = [first - 0.5, last + 0.5];
  const x = (scale) => box.left + ((scale - first) / (last - first)) * (box.right - box.left - 10) + 5;
  const y = (value) => {
    const up = logarithmic && value <= 0 ? low - 1 : scaled(value);
    return box.bottom - ((up - low) / (high - low)) * (box.bottom - box.top);
  };

  const svg = drawn('svg', {
    viewBox: `0 0 ${width} ${height}`, width, height, role: 'img',
    'aria-label': `${metric.name} against the guidance scale`,
  });
  const clip = drawn('clipPath', { id: 'inside' });
  clip.append(drawn('rect', {
    x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top,
  }));
  svg.append(clip);
  const marks = logarithmic
    ? ticks(low, high).filter((t) => high - low < 1.5 || Number.isInteger(t)).map((t) => 10 ** t)
    : ticks(low, high);
  for (const value of marks) {
    svg.append(drawn('line', { class: 'axis', x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
    svg.append(drawn('text', { x: box.left - 6, y: y(value) + 4, 'text-anchor': 'end' }, written(metric, value)));
  }
  for (const value of ticks(first, last)) {
    svg.append(drawn('text', { x: x(value), y: box.bottom + 16, 'text-anchor': 'middle' }, String(value)));
  }
  svg.append(drawn('text', {
    x: (box.left + box.right) / 2, y: height - 6, 'text-anchor': 'middle',
  }, 'guidance scale'));

  const inside = drawn('g', { 'clip-path': 'url(#inside)' });
  const path = (rows) => rows.map((r, i) => `${i ? 'L' : 'M'}${x(r.scale)},${y(r.values[metric.key])}`).join('');
  for (const rows of others) inside.append(drawn('path', { class: 'other', d: path(rows) }));
  const band = (rows, colour) => {
    if (!rows.some((row) => row.half[metric.key])) return;
    const corners = [...rows.map((r) => [x(r.scale), y(ends(r)[1])]),
      ...[...rows].reverse().map((r) => [x(r.scale), y(ends(r)[0])])];
    inside.append(drawn('polygon', { points: corners.map(String).join(' '), fill: colour, 'fill-opacity': 0.18 }));
  };
  const style = [[before, COLOURS[0], ''], [after, COLOURS[1], '7 3']];
  for (const [rows, colour] of style) band(rows, colour);
  if (typeof floor === 'number') {
    inside.append(drawn('line', {
      x1: box.left, x2: box.right, y1: y(floor), y2: y(floor), stroke: 'currentColor', 'stroke-dasharray': '2 3',
    }));
  }
  for (const [rows, colour, dash] of style) {
    inside.append(drawn('path', { d: path(rows), fill: 'none', stroke: colour, 'stroke-width': 2, 'stroke-dasharray': dash }));
    for (const row of rows) {
      const here = row.scale === chosen.scale;
      const dot = drawn('circle', {
        cx: x(row.scale), cy: y(row.values[metric.key]), r: here ? 6 : 4, fill: colour,
        stroke: here ? 'currentColor' : 'none', 'stroke-width': 2,
      });
      dot.append(drawn('title', {}, `scale ${row.scale}: ${written(metric, row.values[metric.key], row.half[metric.key])}`));
      dot.addEventListener('click', () => choose({ scale: row.scale }));
      inside.append(dot);
    }
  }
  svg.append(inside);
  place.replaceChildren(svg);
  chartWords(found, chosen, metric, before, after, real);
}

// The same in words, and what the lines are.
function chartWords(found, chosen, metric, before, after, real) {
  const at = (rows) => rows.find((row) => row.scale === chosen.scale);
  const told = [['before', at(before)], ['after', at(after)], ['real data', real]]
    .filter(([, row]) => row && typeof row.values[metric.key] === 'number')
    .map(([name, row]) => `${name} ${written(metric, row.values[metric.key], row.half[metric.key])}`);
  const n = at(before) ? `; N = ${digits(at(before).n)} a point` : '';
  const seeds = found.seeds.length > 1 ? `, mean of ${found.seeds.length} seeds, bands: 95 % intervals (t)` : '';
  const way = { lower: 'lower is better', higher: 'higher is better', real: 'closer to real is better' };
  byId('chart-says').textContent =
    `${metric.name}: ${metric.text}${metric.better ? `; ${way[metric.better]}` : ''}. ` +
    `${nameOf(found.methods, chosen.method)} at scale ${chosen.scale}: ${told.join(', ')}${n}${seeds}.`;
  const flow = nameOf(found.flows, chosen.flow);
  const keys = [[`${nameOf(found.methods, chosen.method)}, before`, COLOURS[0]]];
  if (after.length) keys.push([flow, COLOURS[1]]);
  if (found.methods.length > 1) keys.push(['other methods, before', 'var(--grey)']);
  if (real) keys.push(['dotted: a fresh real draw', 'currentColor']);
  byId('chart-key').replaceChildren(...keys.map(([text, colour]) => {
    const item = element('span', {}, text);
    item.style.setProperty('--of', colour);
    return item;
  }));
}

const nameOf = (some, key) => (some.find((one) => one.key === key) || { name: key }).name;
