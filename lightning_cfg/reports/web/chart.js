// A metric against the guidance scale: the chosen method in colour, the others grey.
function drawChart(found, chosen) {
  const metric = found.metrics.find((one) => one.key === chosen.metric);
  const place = byId('chart');
  if (!metric) return place.replaceChildren();
  const line = (method, flow) =>
    found.averages
      .filter((row) => row.method === method && row.flow === flow && row.stage !== 'real')
      .filter((row) => typeof row.values[metric.key] === 'number')
      .sort((a, b) => a.scale - b.scale);
  const before = line(chosen.method, '');
  const after = chosen.flow ? line(chosen.method, chosen.flow) : [];
  const others = found.methods.filter(({ key }) => key !== chosen.method).map(({ key }) => line(key, ''));
  const real = found.averages.find((row) => row.stage === 'real');
  const floor = real ? real.values[metric.key] : undefined;

  const width = Math.min(860, place.clientWidth || 860);
  const frame = framed([...before, ...after], floor, metric, width);
  const svg = axes(frame, metric);
  const inside = drawn('g', { 'clip-path': 'url(#inside)' });
  for (const rows of others) inside.append(drawn('path', { class: 'other', d: path(rows, frame, metric) }));
  const style = [[before, COLOURS[0], ''], [after, COLOURS[1], '7 3']];
  for (const [rows, colour] of style) inside.append(...band(rows, colour, frame, metric));
  if (typeof floor === 'number') {
    const [x1, x2, y] = [frame.left, frame.right, frame.y(floor)];
    inside.append(drawn('line', { x1, x2, y1: y, y2: y, stroke: 'currentColor', 'stroke-dasharray': '2 3' }));
  }
  for (const [rows, colour, dash] of style) {
    inside.append(drawn('path', {
      d: path(rows, frame, metric), fill: 'none', stroke: colour, 'stroke-width': 2, 'stroke-dasharray': dash,
    }));
    inside.append(...rows.map((row) => point(row, colour, frame, metric, chosen)));
  }
  svg.append(inside);
  place.replaceChildren(svg);
  chartWords(found, chosen, metric, before, after, real);
}

// Ends of the 95 % interval of a row, over seeds.
function ends(row, metric) {
  const half = row.half[metric.key] || 0;
  return [row.values[metric.key] - half, row.values[metric.key] + half];
}

// Where a scale and a value stand: the range is that of what is chosen, and the others may leave it.
function framed(rows, floor, metric, width) {
  const height = Math.max(260, Math.round(width * 0.45));
  const [left, right, top, bottom] = [66, width - 14, 12, height - 40];
  const means = rows.map((row) => row.values[metric.key]);
  const known = typeof floor === 'number' ? [floor] : [];
  const least = Math.min(...means, ...known);
  const logarithmic = rows.length > 0 && least > 0 && Math.max(...means) > 5 * least;
  let values = [...rows.flatMap((row) => ends(row, metric)), ...known];
  if (logarithmic) values = values.filter((value) => value > 0);
  if (!values.length) values = [0, 1];
  const placed = logarithmic ? Math.log10 : (value) => value;
  let [low, high] = [placed(Math.min(...values)), placed(Math.max(...values))];
  const margin = (high - low || Math.abs(high) || (metric.share ? 0.01 : 1)) * 0.06;
  const negative = logarithmic || Math.min(...values) < 0;
  [low, high] = [negative ? low - margin : Math.max(low - margin, -margin / 3), high + margin];
  const scales = rows.length ? rows.map((row) => row.scale) : [0, 1];
  let [first, last] = [Math.min(...scales), Math.max(...scales)];
  if (first === last) [first, last] = [first - 0.5, last + 0.5];
  const x = (scale) => left + 9 + ((scale - first) / (last - first)) * (right - left - 18);
  const y = (value) => {
    const up = logarithmic && value <= 0 ? low - 1 : placed(value);
    return bottom - ((up - low) / (high - low)) * (bottom - top);
  };
  return { width, height, left, right, top, bottom, low, high, first, last, logarithmic, x, y };
}

function axes(frame, metric) {
  const { width, height, left, right, top, bottom, low, high, first, last, x, y } = frame;
  const svg = drawn('svg', {
    viewBox: `0 0 ${width} ${height}`, width, height, role: 'img',
    'aria-label': `${metric.name} against the guidance scale`,
  });
  const clip = drawn('clipPath', { id: 'inside' });
  clip.append(drawn('rect', { x: left, y: top, width: right - left, height: bottom - top }));
  svg.append(clip);
  const marks = frame.logarithmic
    ? ticks(low, high).filter((t) => high - low < 1.5 || Number.isInteger(t)).map((t) => 10 ** t)
    : ticks(low, high);
  for (const value of marks) {
    svg.append(drawn('line', { class: 'axis', x1: left, x2: right, y1: y(value), y2: y(value) }));
    svg.append(drawn('text', { x: left - 6, y: y(value) + 4, 'text-anchor': 'end' }, written(metric, value)));
  }
  for (const value of ticks(first, last)) {
    svg.append(drawn('text', { x: x(value), y: bottom + 16, 'text-anchor': 'middle' }, String(value)));
  }
  const middle = (left + right) / 2;
  svg.append(drawn('text', { x: middle, y: height - 6, 'text-anchor': 'middle' }, 'guidance scale'));
  return svg;
}

function path(rows, { x, y }, metric) {
  return rows.map((row, i) => `${i ? 'L' : 'M'}${x(row.scale)},${y(row.values[metric.key])}`).join('');
}

function band(rows, colour, { x, y }, metric) {
  if (!rows.some((row) => row.half[metric.key])) return [];
  const side = (i) => rows.map((row) => [x(row.scale), y(ends(row, metric)[i])]);
  const corners = [...side(1), ...side(0).reverse()].map(String).join(' ');
  return [drawn('polygon', { points: corners, fill: colour, 'fill-opacity': 0.18 })];
}

function point(row, colour, { x, y }, metric, chosen) {
  const here = row.scale === chosen.scale;
  const dot = drawn('circle', {
    cx: x(row.scale), cy: y(row.values[metric.key]), r: here ? 6 : 4, fill: colour,
    stroke: here ? 'currentColor' : 'none', 'stroke-width': 2,
  });
  const value = written(metric, row.values[metric.key], row.half[metric.key]);
  dot.append(drawn('title', {}, `scale ${row.scale}: ${value}`));
  dot.addEventListener('click', () => choose({ scale: row.scale }));
  return dot;
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
  const keys = [[`${nameOf(found.methods, chosen.method)}, before`, COLOURS[0]]];
  if (after.length) keys.push([nameOf(found.flows, chosen.flow), COLOURS[1]]);
  if (found.methods.length > 1) keys.push(['other methods, before', 'var(--grey)']);
  if (real) keys.push(['dotted: a fresh real draw', 'currentColor']);
  byId('chart-key').replaceChildren(...keys.map(([text, colour]) => {
    const item = element('span', {}, text);
    item.style.setProperty('--of', colour);
    return item;
  }));
}

const nameOf = (some, key) => (some.find((one) => one.key === key) || { name: key }).name;
