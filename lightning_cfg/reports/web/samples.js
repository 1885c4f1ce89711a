// Samples of one method and scale, from before to after by a slider.
function drawSamples(found, chosen) {
  const held = found.samples;
  const entry = held && held.entries.find((e) => e.method === chosen.method && e.scale === chosen.scale);
  byId('samples').hidden = !held;
  if (!held) return;
  const after = entry && chosen.flow && entry.sets[chosen.flow];
  byId('samples-slide').hidden = !after;
  byId('samples-key').replaceChildren();
  if (!entry) {
    byId('samples-drawn').replaceChildren();
    byId('samples-says').textContent = 'Samples of this method and scale were left out of the page for room.';
    return;
  }
  (held.kind === 'images' ? drawImages : drawPoints)(found, chosen, held, entry, after);
}

function drawImages(found, chosen, held, entry, after) {
  const kind = after ? chosen.flow : '';
  const nearest = entry.nearest && entry.nearest[kind];
  byId('samples-says').textContent =
    (after ? 'Each image before (left of the cut) and after refinement (right of it), of the same seed' : 'Samples before refinement') +
    (nearest ? ', and beside it the nearest real image in |x - y|.' : '.');
  const zoom = 56 / Math.max(held.width, held.height);
  const tile = (sheet, i) => {
    const made = element('i');
    made.style.backgroundImage = `url(${sheet})`;
    made.style.backgroundSize = `${held.width * zoom * entry.c.length}px ${held.height * zoom}px`;
    made.style.backgroundPosition = `${-i * held.width * zoom}px 0`;
    made.style.width = `${held.width * zoom}px`;
    made.style.height = `${held.height * zoom}px`;
    return made;
  };
  const tiles = entry.c.map((k, i) => {
    const pair = element('span', { class: 'pair' }, tile(entry.sets[''] || after, i));
    if (after) pair.append(tile(after, i));
    const row = element('div', {}, pair);
    if (nearest) row.append(tile(nearest, i));
    return element('figure', { class: 'tile' }, row, found.classes[k] ?? `class ${k}`);
  });
  const grid = element('div', { class: 'tiles' }, ...tiles);
  grid.style.setProperty('--cut', byId('cut').value);
  byId('cut').oninput = () => grid.style.setProperty('--cut', byId('cut').value);
  byId('samples-drawn').replaceChildren(grid);
}

function drawPoints(found, chosen, held, entry, after) {
  const place = byId('samples-drawn');
  const two = held.dimension === 2;
  const side = Math.min(420, place.clientWidth || 420);
  const read = (text) => unpacked(text, held.low, held.high);
  const start = read(entry.sets[''] || after);
  const end = after ? read(after) : start;
  const real = held.real && { x: read(held.real.x), c: held.real.c };
  const labelled = (title, label) => {
    const [made, context] = canvas(side, two ? side : 200, label);
    return [element('div', {}, element('h3', {}, title), made), context];
  };
  const [left, context] = labelled('samples', 'Samples as points, coloured by class');
  const parts = [left];
  if (real) {
    const [right, second] = labelled('held-out real data', 'Real points, coloured by class');
    parts.push(right);
    points(second, held, real.x, real.c, side);
  }
  const d = held.dimension;
  const beyond = entry.c.filter((_, i) => Number.isNaN(start[d * i] + end[d * i])).length;
  byId('samples-says').textContent =
    `${entry.c.length} of the samples, ${after ? 'moved along the straight line from before to after refinement (the flow’s own way may bend)' : 'before refinement'}` +
    `${beyond ? `; ${beyond} of them lie beyond the frame` : ''}.`;
  const redraw = () => {
    const cut = after ? byId('cut').value / 100 : 0;
    points(context, held, start.map((value, i) => value + cut * (end[i] - value)), entry.c, side);
  };
  byId('cut').oninput = redraw;
  redraw();
  place.replaceChildren(...parts);
  classKey(byId('samples-key'), found.classes);
}

// In one dimension each class has a strip, in which height means nothing.
function points(context, held, x, c, side) {
  const two = held.dimension === 2;
  const height = two ? side : 200;
  context.clearRect(0, 0, side, height);
  context.strokeStyle = ink('--line');
  context.strokeRect(0.5, 0.5, side - 1, height - 1);
  const across = (value) => ((value - held.low[0]) / (held.high[0] - held.low[0])) * side;
  const classes = Math.max(...c) + 1;
  c.forEach((k, i) => {
    const left = across(x[held.dimension * i]);
    const top = two
      ? (1 - (x[2 * i + 1] - held.low[1]) / (held.high[1] - held.low[1])) * side
      : ((k + 0.15 + 0.7 * ((i * 0.618034) % 1)) / classes) * (height - 20);
    context.fillStyle = colourOf(k);
    context.globalAlpha = 0.7;
    context.fillRect(left - 1.5, top - 1.5, 3, 3); // NaN draws nothing
  });
  context.globalAlpha = 1;
  if (!two) {
    context.fillStyle = ink('--soft');
    context.font = '12px system-ui,sans-serif';
    context.textAlign = 'center';
    for (const value of ticks(held.low[0], held.high[0])) context.fillText(value, across(value), height - 6);
  }
}
