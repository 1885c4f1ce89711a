// What all parts draw with: elements, colours, numbers, packed coordinates.
const COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00'];
const OUTSIDE = -32768;

const byId = (id) => document.getElementById(id);
const colourOf = (k) => COLOURS[k % COLOURS.length];
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children); // texts become text, never markup
  return made;
}

function drawn(name, attributes = {}, text = '') {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// A number as the report writes it: three digits, shares in per cent.
function digits(value) {
  if (value === null || value === undefined) return '';
  if (value !== 0 && Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en');
  return String(Number(value.toPrecision(3)));
}

function written(metric, value, half) {
  if (value === null || value === undefined) return '';
  const factor = metric && metric.share ? 100 : 1;
  const interval = half === undefined || half === null ? '' : ` ± ${digits(half * factor)}`;
  return digits(value * factor) + interval + (factor === 100 ? ' %' : '');
}

// Coordinates (n, d) of 16 bits within a frame, low to high; NaN where they lie beyond it.
function unpacked(text, low, high) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const d = low.length;
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => {
    const steps = view.getInt16(2 * i, true);
    if (steps === OUTSIDE) return NaN;
    return low[i % d] + ((steps / 32767 + 1) / 2) * (high[i % d] - low[i % d]);
  });
}

// A canvas as sharp as the screen, with its context in CSS pixels.
function canvas(width, height, label) {
  const made = element('canvas', { role: 'img', 'aria-label': label });
  const ratio = window.devicePixelRatio || 1;
  made.width = width * ratio;
  made.height = height * ratio;
  made.style.width = `${width}px`;
  made.style.height = `${height}px`;
  const context = made.getContext('2d');
  context.scale(ratio, ratio);
  return [made, context];
}

// Round numbers between two ends, some five of them.
function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const out = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
    out.push(Number(value.toPrecision(12)));
  }
  return out;
}

function fill(select, options, wanted) {
  select.replaceChildren(
    ...options.map(({ value, text }) => element('option', { value }, text)),
  );
  if (options.some(({ value }) => String(value) === String(wanted))) select.value = wanted;
}

function classKey(place, classes) {
  place.replaceChildren(
    ...classes.slice(0, 10).map((name, k) => {
      const item = element('span', {}, name);
      item.style.setProperty('--of', colourOf(k));
      return item;
    }),
  );
}
