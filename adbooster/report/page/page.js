// Puts the page together: sections, keys, theme.
const KEYS = [
  ['← → ↑ ↓', 'move through the gallery'], ['j / k', 'next / previous creative'], ['Enter', 'open the creative'],
  ['a', 'approve, or take it back'], ['r', 'reject, or take it back'], ['u', 'take the mark back'], ['/', 'search'], ['Home / End', 'first / last creative'],
  ['Esc', 'close, or leave a field'], ['?', 'these keys'],
];
const THEMES = { '': 'Auto', light: 'Light', dark: 'Dark' };

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId('theme').textContent = THEMES[theme];
  byId('theme').setAttribute('aria-label', `Colours: ${THEMES[theme].toLowerCase()}; change`);
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const theme = names[(names.indexOf(document.documentElement.dataset.theme || '') + 1) % names.length];
  kept.set('adbooster-theme', theme);
  setTheme(theme);
}

function showKeys() {
  const dialog = byId('keys');
  fill(dialog,
    el('div', { class: 'bar' }, el('h2', { id: 'keys-title' }, 'Keys'), el('button', { type: 'button', class: 'quiet', 'aria-label': 'Close', onclick: () => dialog.close() }, '✕')),
    el('dl', {}, KEYS.map(([key, what]) => [el('dt', {}, el('kbd', {}, key)), el('dd', {}, what)])));
  if (!dialog.open) dialog.showModal();
}

/** One key; true if it was ours. */
function key(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  if (typing) {
    if (event.key === 'Escape') return event.target.blur(), true; // the browser would empty the search
    if (event.key === 'Enter' && event.target.id === 'search') return activate(Math.max(gallery.active, 0)), true;
    return false;
  }
  if (byId('keys').open) return event.key === '?' ? (byId('keys').close(), true) : false;
  if (event.key === '?') return showKeys(), true;
  const inDetail = byId('detail').open;
  const go = inDetail ? openDetail : activate;
  const at = inDetail ? opened : gallery.active, focused = byId('grid').contains(document.activeElement);
  const moves = { j: at + 1, k: Math.max(at - 1, 0) };
  if (inDetail || focused) Object.assign(moves, { ArrowRight: at + 1, ArrowLeft: at - 1 });
  if (focused && !inDetail) {
    Object.assign(moves, { ArrowDown: Math.min(at + gallery.columns, gallery.list.length - 1), ArrowUp: at - gallery.columns < 0 ? at : at - gallery.columns, Home: 0, End: gallery.list.length - 1 });
  }
  if (event.key in moves) {
    if (gallery.list[moves[event.key]]) go(moves[event.key]);
    return true;
  }
  if (event.key === '/' && !inDetail) return byId('search').focus(), byId('search').select(), true;
  if (event.key === 'Enter' && focused && document.activeElement.matches('.card')) return openDetail(gallery.active), true;
  const mark = { a: 'approved', r: 'rejected', u: 'clear' }[event.key];
  if (!mark || !gallery.list[at]) return false;
  const given = mark === 'clear' ? markOf(gallery.list[at]) : mark;
  if (given && inDetail) markOpened(given);
  else if (given) markAt(at, given);
  return true;
}

function clicked(event) {
  const made = event.target.closest('.card');
  if (!made) return;
  const i = Number(made.dataset.i), button = event.target.closest('.verdict button');
  activate(i);
  if (button) markAt(i, button.dataset.mark);
  else openDetail(i);
}

function listen() {
  byId('theme').addEventListener('click', nextTheme);
  byId('show-keys').addEventListener('click', showKeys);
  byId('filters').addEventListener('submit', (event) => event.preventDefault());
  byId('filters').addEventListener('reset', () => setTimeout(applyFilters));
  for (const name of filters) byId(name).addEventListener(name === 'search' ? 'input' : 'change', applyFilters);
  byId('export').addEventListener('click', exportMarks);
  byId('import').addEventListener('click', () => byId('import-file').click());
  byId('import-file').addEventListener('change', async (event) => {
    const [file] = event.target.files;
    event.target.value = '';
    if (file) { await importMarks(file); refreshMarks(); }
  });
  byId('grid').addEventListener('click', clicked);
  byId('grid').addEventListener('focusin', (event) => {
    const made = event.target.closest('.card');
    if (made && Number(made.dataset.i) !== gallery.active) activate(Number(made.dataset.i), false);
  });
  byId('detail').addEventListener('close', () => { if (gallery.list[opened]) activate(opened); });
  for (const dialog of document.querySelectorAll('dialog')) dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
  document.addEventListener('keydown', (event) => { if (key(event)) event.preventDefault(); });
  let waiting = false;
  const soon = (what) => () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; what(); }); } };
  addEventListener('scroll', soon(draw), { passive: true });
  new ResizeObserver(soon(layOut)).observe(byId('grid'));
}

const wide = matchMedia('(min-width: 760px)');
const unfold = () => { byId('more-filters').open = wide.matches; };

setTheme(['light', 'dark'].includes(kept.get('adbooster-theme')) ? kept.get('adbooster-theme') : '');
document.title = `AdBooster ${plain(DATA.run_id)}`;
unfold();
wide.addEventListener('change', unfold);
loadMarks();
index();
fillFilters();
results();
evaluation();
learning();
deliveries();
tellMarks();
listen();
applyFilters();
document.documentElement.dataset.ready = 'true';
