// All numbers, sorted by any column: averages, or the rows of table.csv.
const sorting = { column: null, down: false };

function drawTable(found, chosen) {
  const each = byId('each').checked && found.rows.length > 0;
  byId('each-label').hidden = !found.rows.length;
  const metrics = found.metrics;
  let columns;
  let rows;
  if (each) {
    columns = found.columns.map((key) => ({ key, name: key, metric: metrics.find((m) => m.key === key) }));
    rows = found.rows.map((row) => Object.fromEntries(found.columns.map((key, i) => [key, row[i]])));
  } else {
    columns = [['method', 'method'], ['scale', 'scale'], ['flow', 'samples'], ['n', 'n'], ['nfe', 'NFE'], ['seconds', 'seconds']]
      .map(([key, name]) => ({ key, name }))
      .concat(metrics.map((metric) => ({ key: metric.key, name: metric.name, metric })));
    rows = found.averages.map((row) => ({ ...row, ...row.values }));
  }
  if (byId('only').checked) rows = rows.filter((row) => row.method === chosen.method || row.stage === 'real');
  const by = columns.find((column) => column.key === sorting.column);
  if (by) {
    const sign = sorting.down ? -1 : 1;
    const missing = (value) => value === null || value === undefined || value === '';
    rows = [...rows].sort((a, b) => {
      const [one, other] = [a[by.key], b[by.key]];
      if (missing(one) || missing(other)) return missing(one) - missing(other); // last, both ways
      return sign * (typeof one === 'number' ? one - other : String(one).localeCompare(String(other)));
    });
  }
  const arrows = { lower: ' ↓', higher: ' ↑' };
  const head = element('tr', {}, ...columns.map(({ key, name, metric }) => {
    const button = element('button', { type: 'button', 'data-key': key }, name + (metric ? arrows[metric.better] || '' : ''));
    button.addEventListener('click', () => {
      sorting.down = sorting.column === key && !sorting.down;
      sorting.column = key;
      drawTable(found, chosen);
      byId('sortable').querySelector(`button[data-key="${CSS.escape(key)}"]`).focus();
    });
    const cell = element('th', { scope: 'col' }, button);
    if (key === sorting.column) cell.setAttribute('aria-sort', sorting.down ? 'descending' : 'ascending');
    return cell;
  }));
  const texts = { method: (row) => nameOf(found.methods, row.method), flow: (row) => row.stage === 'real' ? 'fresh draw' : nameOf(found.flows, row.flow) };
  const body = rows.map((row) => {
    const cells = columns.map(({ key, metric }) => {
      const value = row[key];
      if (!each && texts[key]) return texts[key](row);
      if (metric) return written(metric, value, each ? undefined : row.half[key]);
      return typeof value === 'number' ? digits(value) : value ?? '';
    });
    const here = !each && row.method === chosen.method && row.scale === chosen.scale;
    return element('tr', here ? { class: 'chosen' } : {}, ...cells.map((text) => element('td', {}, text)));
  });
  byId('sortable').replaceChildren(element('table', {}, element('thead', {}, head), element('tbody', {}, ...body)));
  byId('table-says').textContent = `${rows.length} rows; ` +
    (each ? 'as in table.csv.' : `classes averaged${found.seeds.length > 1 ? `, mean ± half of the 95 % interval over ${found.seeds.length} seeds` : ''}.`) +
    (found.rows.length ? '' : ' Every class and seed stands in table.csv.');
}
