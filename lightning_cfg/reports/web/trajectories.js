// Trajectories of one method and scale, drawn up to a noise level that plays from noise to data.
let playing = 0; // the timer that moves it on

function drawTrajectories(found, chosen) {
  const held = found.trajectories;
  stopPlaying();
  byId('trajectories').hidden = !held;
  if (!held) return;
  const entry = held.entries.find((e) => e.method === chosen.method && e.scale === chosen.scale);
  const place = byId('trajectories-drawn');
  byId('trajectories-says').textContent = entry
    ? `${entry.c.length} trajectories in u = x / √(1 + σ²)` +
      (held.dimension === 1 ? ' against t/T of the DDPM (1: noise, 0: data).' : ', in the plane; each point with the way that it came.') +
      (entry.boundary ? ` Points in the colour of text: the decision boundary of ${entry.by === 'own' ? 'its own classifier' : entry.by}.` : '')
    : 'This method and scale have no trajectories.';
  if (!entry) return place.replaceChildren();
  const width = Math.min(held.dimension === 1 ? 760 : 460, place.clientWidth || 760);
  const height = held.dimension === 1 ? Math.round(width * 0.5) : width;
  const [made, context] = canvas(width, height, 'Trajectories, coloured by class');
  place.replaceChildren(made);
  classKey(byId('trajectories-key'), found.classes);
  const u = unpacked(entry.u, held.low, held.high);
  const level = byId('level');
  level.max = entry.sigma.length - 1;
  const redraw = () => {
    const at = Number(level.value);
    const i = Math.round(at);
    byId('level-says').textContent = `σ = ${digits(entry.sigma[i])}, t/T = ${digits(entry.t[i])}`;
    (held.dimension === 1 ? lines : plane)(context, held, entry, u, at, width, height);
  };
  level.value = entry.sigma.length - 1;
  level.oninput = () => { stopPlaying(); redraw(); };
  byId('play').onclick = () => (playing ? stopPlaying() : play(level, redraw));
  redraw();
}

function stopPlaying() {
  clearInterval(playing);
  playing = 0;
  byId('play').textContent = 'Play';
}

function play(level, redraw) {
  const last = Number(level.max);
  const from = Number(level.value) >= last ? 0 : Number(level.value);
  const begun = performance.now();
  byId('play').textContent = 'Pause';
  playing = setInterval(() => {
    const at = Math.min(last, from + ((performance.now() - begun) / 4000) * last); // 4 s in all
    level.value = at;
    redraw();
    if (at >= last) stopPlaying();
  }, 33);
}

// Where a trajectory is at a level that may lie between two.
function placed(u, d, levels, i, at, k) {
  const low = Math.floor(at);
  const high = Math.min(levels - 1, low + 1);
  const value = (level) => u[(i * levels + level) * d + k];
  return value(low) + (at - low) * (value(high) - value(low));
}

function lines(context, held, entry, u, at, width, height) {
  const levels = entry.sigma.length;
  const [left, bottom] = [46, height - 34];
  const most = Math.max(...entry.t);
  const x = (t) => left + (1 - t / most) * (width - left - 12);
  const y = (value) => bottom - ((value - held.low[0]) / (held.high[0] - held.low[0])) * (bottom - 8);
  frame(context, width, height);
  context.fillStyle = ink('--soft');
  context.textAlign = 'right';
  for (const value of ticks(held.low[0], held.high[0])) context.fillText(value, left - 6, y(value) + 4);
  context.textAlign = 'center';
  for (const value of ticks(0, most)) context.fillText(value, x(value), bottom + 16);
  context.fillText('t/T', (left + width) / 2, height - 4);
  context.textAlign = 'left';
  context.fillText('u', 4, 16);
  context.fillStyle = ink('--ink');
  for (const [t, value] of entry.boundary || []) {
    if (value > held.low[0] && value < held.high[0]) context.fillRect(x(t) - 1, y(value) - 1, 2.5, 2.5);
  }
  const time = (level) => entry.t[Math.floor(level)] +
    (level % 1) * ((entry.t[Math.floor(level) + 1] ?? 0) - entry.t[Math.floor(level)]);
  entry.c.forEach((k, i) => {
    context.strokeStyle = context.fillStyle = colourOf(k);
    for (const [end, alpha] of [[levels - 1, 0.12], [at, 0.75]]) {
      context.globalAlpha = alpha;
      context.beginPath();
      for (let level = 0; level <= end; level += 1) {
        const value = u[i * levels + level];
        if (!Number.isNaN(value)) context.lineTo(x(entry.t[level]), y(value));
      }
      if (end % 1) context.lineTo(x(time(end)), y(placed(u, 1, levels, i, end, 0)));
      context.stroke();
    }
    dot(context, x(time(at)), y(placed(u, 1, levels, i, at, 0)));
  });
  context.globalAlpha = 1;
}

function plane(context, held, entry, u, at, width, height) {
  const levels = entry.sigma.length;
  const x = (value) => ((value - held.low[0]) / (held.high[0] - held.low[0])) * width;
  const y = (value) => (1 - (value - held.low[1]) / (held.high[1] - held.low[1])) * height;
  frame(context, width, height);
  entry.c.forEach((k, i) => {
    context.strokeStyle = context.fillStyle = colourOf(k);
    context.globalAlpha = 0.3;
    context.beginPath();
    for (let level = 0; level <= at; level += 1) {
      const j = (i * levels + level) * 2;
      if (!Number.isNaN(u[j] + u[j + 1])) context.lineTo(x(u[j]), y(u[j + 1]));
    }
    const end = [placed(u, 2, levels, i, at, 0), placed(u, 2, levels, i, at, 1)];
    if (!Number.isNaN(end[0] + end[1])) context.lineTo(x(end[0]), y(end[1]));
    context.stroke();
    context.globalAlpha = 0.9;
    dot(context, x(end[0]), y(end[1]));
  });
  context.globalAlpha = 1;
}

function frame(context, width, height) {
  context.clearRect(0, 0, width, height);
  context.font = '12px system-ui,sans-serif';
  context.lineWidth = 1;
  context.strokeStyle = ink('--line');
  context.strokeRect(0.5, 0.5, width - 1, height - 1);
}

function dot(context, x, y) {
  context.beginPath();
  context.arc(x, y, 2.5, 0, 2 * Math.PI);
  context.fill(); // NaN draws nothing
}
