// The gallery: rows of cards, of which only those near the window exist, so that 10,000 creatives scroll like ten.
const BEYOND = 2; // rows drawn above and below the window
const gallery = { list: [], columns: 1, high: 1, rows: new Map(), active: -1 };
const filters = ['search', 'family', 'cohort', 'product', 'word', 'kind', 'mark', 'order'];
const ORDERS = {
  product: ['product, then cohort', null],
  best: ['best score first', (a, b) => b.clip_score - a.clip_score],
  worst: ['worst score first', (a, b) => a.clip_score - b.clip_score],
  margin: ['smallest margin first', (a, b) => a.margin - b.margin],
};
const KINDS = {
  all: ['everything', () => true],
  painted: ['painted scenes', (c) => !c.fallback],
  fallback: ['original pictures', (c) => c.fallback],
  fresh: ['new in this run', (c) => c.fresh],
};

function fillFilters() {
  const option = (value, text) => el('option', { value }, text);
  const families = [...new Set(DATA.cohorts.map((c) => c.family))].sort();
  byId('family').replaceChildren(option('', 'all'), ...families.map((f) => option(f || '(none)', plain(f || '(none)'))));
  byId('cohort').replaceChildren(option('', 'all'), ...DATA.cohorts.map((c, i) => option(i, plain(c.text))));
  byId('product').replaceChildren(option('', 'all'),
    ...DATA.products.map((p, i) => option(i, `${plain(p.title || p.id, 50)}${p.title ? ` (${plain(p.id, 20)})` : ''}`)));
  const counts = new Map();
  for (const c of DATA.creatives) for (const word of c.words) counts.set(word, (counts.get(word) || 0) + 1);
  const sorted = [...counts].sort((a, b) => b[1] - a[1]);
  byId('word').replaceChildren(option('', 'any or none'), ...sorted.map(([word, n]) => option(word, `${words(word)} (${count(n)})`)));
  byId('kind').replaceChildren(...Object.entries(KINDS).map(([value, [text]]) => option(value, text)));
  byId('mark').replaceChildren(...['all', 'none', 'approved', 'rejected'].map((m) => option(m === 'all' ? '' : m, m)));
  byId('order').replaceChildren(...Object.entries(ORDERS).map(([value, [text]]) => option(value, text)));
}

/** What can be asked of a creative, worked out once. */
function index() {
  for (const c of DATA.creatives) {
    const product = DATA.products[c.product], cohort = DATA.cohorts[c.cohort];
    const turnedDown = c.candidates.map((k) => k.word).filter(Boolean);
    c.words = [...new Set([...(c.fallback_reason ? [c.fallback_reason] : []), ...turnedDown])];
    c.text = [product.title, product.id, product.category, cohort.text, cohort.id, c.prompt, c.creative_id].join('\n').toLowerCase();
  }
}

function applyFilters() {
  const said = Object.fromEntries(filters.map((name) => [name, byId(name).value]));
  const asked = said.search.toLowerCase().split(/\s+/).filter(Boolean);
  const before = gallery.list[gallery.active];
  gallery.list = DATA.creatives.filter((c) => {
    const cohort = DATA.cohorts[c.cohort];
    return (!said.family || (cohort.family || '(none)') === said.family)
      && (said.cohort === '' || c.cohort === Number(said.cohort))
      && (said.product === '' || c.product === Number(said.product))
      && (!said.word || c.words.includes(said.word))
      && KINDS[said.kind][1](c)
      && (!said.mark || (markOf(c) || 'none') === said.mark)
      && asked.every((word) => c.text.includes(word));
  });
  const compare = ORDERS[said.order][1];
  if (compare) gallery.list.sort(compare);
  gallery.active = gallery.list.indexOf(before);
  const all = DATA.creatives.length;
  const sample = DATA.live > all ? `, a sample of ${count(DATA.live)} live` : '';
  byId('shown').textContent = gallery.list.length === all ? `${many(all, 'creative')}${sample}` : `${count(gallery.list.length)} of ${many(all, 'creative')}${sample}`;
  const narrowed = filters.filter((name) => !['search', 'order'].includes(name) && said[name] && said[name] !== 'all').length;
  byId('more-filters').querySelector('summary').textContent = narrowed ? `Filters (${narrowed})` : 'Filters';
  byId('nothing').hidden = gallery.list.length > 0;
  fill(byId('nothing'), emptyText());
  layOut(true);
}

function emptyText() {
  if (DATA.creatives.length) return [el('p', {}, 'No creative fits these filters.'), el('button', { type: 'reset', form: 'filters' }, 'Clear filters')];
  return [el('h3', {}, 'No creatives to show'), el('p', {}, DATA.numbers.why_not
    ? 'Nothing was published in this run, and nothing was live before it.'
    : 'Nothing is live, or this run was asked to show none (generate.gallery is 0).')];
}

/** Measure, then draw what is near the window. */
function layOut(anew = false) {
  const grid = byId('grid');
  const style = getComputedStyle(grid);
  const gap = parseFloat(style.getPropertyValue('--gap')), least = parseFloat(style.getPropertyValue('--card'));
  const columns = Math.max(1, Math.floor((grid.clientWidth + gap) / (least + gap)));
  const wide = (grid.clientWidth - gap * (columns - 1)) / columns;
  const high = Math.round(wide + parseFloat(style.getPropertyValue('--below')) + gap);
  if (anew || columns !== gallery.columns || high !== gallery.high) {
    grid.replaceChildren();
    gallery.rows.clear();
    Object.assign(gallery, { columns, high });
    grid.style.height = `${Math.ceil(gallery.list.length / columns) * high}px`;
    grid.style.setProperty('--columns', columns);
    grid.setAttribute('aria-rowcount', Math.ceil(gallery.list.length / columns));
    grid.setAttribute('aria-colcount', columns);
  }
  draw();
}

function draw() {
  const grid = byId('grid'), { columns, high, rows } = gallery;
  const top = -grid.getBoundingClientRect().top;
  const last = Math.ceil(gallery.list.length / columns) - 1;
  const from = Math.max(0, Math.floor(top / high) - BEYOND), to = Math.min(last, Math.floor((top + innerHeight) / high) + BEYOND);
  const active = gallery.active < 0 ? -1 : Math.floor(gallery.active / columns);
  for (const [at, row] of rows) if ((at < from || at > to) && at !== active) { row.remove(); rows.delete(at); }
  for (let at = from; at <= to; at += 1) if (!rows.has(at)) addRow(at);
  if (active >= 0 && !rows.has(active)) addRow(active);
}

function addRow(at) {
  const { columns, high, rows } = gallery, grid = byId('grid');
  const cards = gallery.list.slice(at * columns, (at + 1) * columns).map((c, i) => card(c, at * columns + i));
  const row = el('div', { class: 'row', role: 'row', 'aria-rowindex': at + 1, 'data-at': at }, cards);
  row.style.transform = `translateY(${at * high}px)`;
  const next = [...grid.children].find((r) => Number(r.dataset.at) > at);
  grid.insertBefore(row, next || null);
  rows.set(at, row);
}

function card(c, i) {
  const product = DATA.products[c.product], cohort = DATA.cohorts[c.cohort];
  const title = product.title || product.id;
  const told = el('div', { class: 'told' },
    foreign(cohort.text, 'p', { class: 'cohort' }),
    foreign(title, 'p', { class: 'product' }),
    el('p', { class: 'numbers' }, el('b', {}, score(c.clip_score)),
      c.fallback ? ` the original picture: ${words(c.fallback_reason || 'below_original')}` : ` ${signed(c.clip_score - c.neutral_score)} over white`));
  const made = el('article', { class: 'card', role: 'gridcell', tabindex: i === Math.max(0, gallery.active) ? 0 : -1, 'data-i': i, 'data-id': c.creative_id, 'aria-colindex': (i % gallery.columns) + 1 },
    el('div', { class: 'shot' }, picture(c.thumb, ''), c.rank ? el('span', { class: 'rank' }, `no. ${c.rank + 1}`) : null,
      el('span', { class: 'badge' }),
      el('div', { class: 'verdict' }, markButton(c, 'approved', i), markButton(c, 'rejected', i))),
    strip(c, product), told);
  showMark(made, c);
  return made;
}

function markButton(c, mark) {
  const verb = mark === 'approved' ? 'Approve' : 'Reject';
  return el('button', { type: 'button', class: mark, tabindex: -1, title: `${verb} (${verb[0].toLowerCase()})`, 'aria-label': verb, 'data-mark': mark },
    mark === 'approved' ? '✓' : '✕');
}

/** Photo, mask and candidates, small; the winner has a ring. */
function strip(c, product) {
  const pictured = c.candidates.filter((k) => known(k.thumb));
  const places = 4;
  const chosen = pictured.length > places ? [...pictured].sort((a, b) => b.won - a.won || b.score - a.score).slice(0, places) : pictured;
  return el('div', { class: 'strip', 'aria-hidden': 'true' },
    el('span', { class: 'own' }, picture(product.photo, ''), picture(product.mask, '')),
    chosen.map((k) => el('span', { class: `tried${k.won ? ' won' : ''}${k.word ? ' down' : ''}` }, picture(k.thumb, ''), el('i', {}, score(k.score).replace(/^0/, '')))),
    pictured.length > places ? el('span', { class: 'rest' }, `+${pictured.length - places}`) : null);
}

function showMark(made, c) {
  const mark = markOf(c), product = DATA.products[c.product], cohort = DATA.cohorts[c.cohort];
  made.dataset.mark = mark || '';
  made.setAttribute('aria-label', plain(`${product.title || product.id}, for ${cohort.text}, score ${score(c.clip_score)}${c.fallback ? ', the original picture' : ''}${mark ? `, ${mark}` : ''}`, 300));
  made.querySelector('.badge').textContent = mark || (c.fallback ? 'original picture' : '');
  for (const button of made.querySelectorAll('.verdict button')) button.setAttribute('aria-pressed', button.dataset.mark === mark);
}

const cardAt = (i) => byId('grid').querySelector(`[data-i="${i}"]`);

/** Make a creative the active one, bring it into the window and give it the focus. */
function activate(i, focus = true) {
  if (!gallery.list.length) return;
  const to = Math.min(Math.max(i, 0), gallery.list.length - 1);
  for (const old of byId('grid').querySelectorAll('[tabindex="0"]')) old.tabIndex = -1;
  gallery.active = to;
  draw();
  const made = cardAt(to);
  made.tabIndex = 0;
  if (focus) made.focus({ preventScroll: true });
  const box = made.getBoundingClientRect(), covered = byId('filters').getBoundingClientRect().bottom;
  const head = Math.max(0, covered) + 12;
  if (box.top < head) scrollBy({ top: box.top - head });
  else if (box.bottom > innerHeight - 8) scrollBy({ top: Math.min(box.bottom - innerHeight + 8, box.top - head) });
  draw();
}

function markAt(i, mark) {
  const c = gallery.list[i];
  if (!c) return;
  toggleMark(c, mark);
  refreshMarks();
}

function refreshMarks() {
  refreshDelivered();
  for (const made of byId('grid').querySelectorAll('.card')) showMark(made, gallery.list[Number(made.dataset.i)]);
}

function filterBy(name, value) {
  byId('filters').reset();
  byId(name).value = value;
  applyFilters();
  byId('gallery').scrollIntoView();
}
