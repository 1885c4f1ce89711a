// What is chosen, and all parts of the page by it.
const data = JSON.parse(byId('data').textContent);
const chosen = { case: 0, method: '', scale: 1, flow: '', metric: '' };

// Change some of what is chosen; what then does not go together falls back to what there is.
function choose(change) {
  Object.assign(chosen, change);
  const found = data.cases[chosen.case];
  const rows = found.averages.filter((row) => row.stage !== 'real');
  const asOptions = (some) => some.map(({ key, name }) => ({ value: key, text: name }));
  fill(byId('case'), data.cases.map((one, i) => ({ value: i, text: one.name })), chosen.case);
  fill(byId('method'), asOptions(found.methods), chosen.method);
  chosen.method = byId('method').value;
  const own = rows.filter((row) => row.method === chosen.method);
  const scales = [...new Set(own.map((row) => row.scale))].sort((a, b) => a - b);
  if (!scales.includes(chosen.scale)) {
    chosen.scale = scales.reduce((a, b) => Math.abs(b - chosen.scale) < Math.abs(a - chosen.scale) ? b : a, scales[0]);
  }
  fill(byId('scale'), scales.map((scale) => ({ value: scale, text: String(scale) })), chosen.scale);
  const flows = found.flows.filter(({ key }) => key && own.some((row) => row.flow === key));
  fill(byId('flow'), asOptions(flows), chosen.flow);
  chosen.flow = flows.length ? byId('flow').value : '';
  const measured = found.metrics.filter(({ key }) => own.some((row) => typeof row.values[key] === 'number'));
  fill(byId('metric'), asOptions(measured), chosen.metric);
  chosen.metric = byId('metric').value;
  document.querySelector('.when-cases').hidden = data.cases.length < 2;
  document.querySelector('.when-flows').hidden = !flows.length;
  for (const id of ['samples', 'trajectories']) {
    document.querySelector(`nav a[href="#${id}"]`).hidden = !found[id];
  }
  drawAll();
}

function drawAll() {
  const found = data.cases[chosen.case];
  drawChart(found, chosen);
  drawSamples(found, chosen);
  drawTrajectories(found, chosen);
  drawTable(found, chosen);
}

byId('choice').addEventListener('submit', (event) => event.preventDefault());
byId('choice').addEventListener('change', () => choose({
  case: Number(byId('case').value), method: byId('method').value, scale: Number(byId('scale').value),
  flow: byId('flow').value, metric: byId('metric').value,
}));
for (const id of ['only', 'each']) byId(id).addEventListener('change', () => drawTable(data.cases[chosen.case], chosen));

function theme(dark) {
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  byId('theme').setAttribute('aria-pressed', String(dark));
}
const system = window.matchMedia('(prefers-color-scheme: dark)');
system.addEventListener('change', () => { theme(system.matches); drawAll(); });
byId('theme').addEventListener('click', () => { theme(document.documentElement.dataset.theme !== 'dark'); drawAll(); });

for (const button of document.querySelectorAll('.enlarge')) {
  button.addEventListener('click', () => {
    const large = button.parentElement.classList.toggle('large');
    button.setAttribute('aria-expanded', String(large));
  });
}
let width = window.innerWidth; // on phones a bar that comes and goes changes the height
window.addEventListener('resize', () => {
  if (window.innerWidth !== width) { width = window.innerWidth; drawAll(); }
});

theme(system.matches);
choose({ scale: 2 });
