// One creative in full: the picture, what it was made from, its candidates, scores and gate figures.
const FIGURES = {
  product_max_diff: ['Product pixels changed', (v) => (v === 0 ? 'none' : `by up to ${v} of 255`)],
  psnr_db: ['Product, after lossy encoding', (v) => `${v.toFixed(1)} dB`],
  expansion_share: ['Product seems grown by', (v) => share(v)],
  copy_similarity: ['Likeness of a second thing', score],
  people: ['People in the scene', (v) => share(v)],
  text: ['Writing in the scene', (v) => share(v)],
  unsafe: ['Unsafe', (v) => (v ? 'yes' : 'no')],
  colour_distance: ['Colour, product to scene', (v) => `${v.toFixed(0)} (CIEDE2000)`],
  scene_light_deg: ['Light in the scene', (v) => `from ${v.toFixed(0)}°`],
  scene_light_confidence: ['as sure as', (v) => share(v)],
  product_light_deg: ['Light on the product', (v) => `from ${v.toFixed(0)}°`],
  product_light_confidence: ['as sure as', (v) => share(v)],
  light_opposition: ['Light from opposite sides', (v) => share(v)],
  ground_line: ['Ground begins at', (v) => `${share(v)} of the height`],
  contact_share: ['Base on the ground', (v) => share(v)],
  clash: ['Scene against product', (v) => share(v)],
};
let opened = -1;

function figureRows(figures) {
  return Object.entries(figures).map(([name, value]) => {
    const [text, shown] = FIGURES[name] || [words(name), String];
    return [el('dt', {}, text), el('dd', {}, shown(value))];
  });
}

function verdictOf(candidate, c) {
  if (candidate.won) return 'winner';
  if (candidate.word) return words(candidate.word);
  if (Object.keys(candidate.figures || {}).length) return 'passed, not chosen';
  return c.fallback ? 'not chosen' : 'a better one won';
}

function candidateFigure(k, c, i) {
  return el('figure', { class: `candidate${k.won ? ' won' : ''}${k.word ? ' down' : ''}` },
    known(k.thumb) ? picture(k.thumb, `candidate ${i + 1}`) : null,
    el('figcaption', {}, el('b', {}, score(k.score)), ' ', el('span', {}, known(k.thumb) || k.won ? verdictOf(k, c) : ''),
      k.figures && Object.keys(k.figures).length ? el('dl', {}, figureRows(k.figures)) : null,
      k.seed ? el('small', {}, `seed ${k.seed}`) : null));
}

function openDetail(i) {
  const dialog = byId('detail');
  opened = Math.min(Math.max(i, 0), gallery.list.length - 1);
  const c = gallery.list[opened];
  if (!c) return;
  if (byId('detail').open || byId('grid').contains(document.activeElement)) activate(opened, false);
  fill(dialog, detail(c));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  dialog.focus();
  showDetailMark(c);
}

/** Open a creative from outside the gallery; filters that hide it are cleared. */
function openThis(c) {
  if (!gallery.list.includes(c)) {
    byId('filters').reset();
    applyFilters();
  }
  openDetail(gallery.list.indexOf(c));
}

function detail(c) {
  const product = DATA.products[c.product], cohort = DATA.cohorts[c.cohort];
  const step = (by, text, key) => el('button', { type: 'button', class: 'quiet', 'aria-label': text, title: `${text} (${key})`, disabled: !gallery.list[opened + by], onclick: () => openDetail(opened + by) }, by < 0 ? '←' : '→');
  const only = (name, value, text) => el('button', { type: 'button', class: 'link', onclick: () => { byId('detail').close(); filterBy(name, value); } }, text);
  const fact = (name, ...value) => [el('dt', {}, name), el('dd', {}, ...value)];
  return [
    el('div', { class: 'bar' }, el('span', { class: 'muted' }, `${count(opened + 1)} of ${count(gallery.list.length)}`), step(-1, 'Previous', 'k'), step(1, 'Next', 'j'),
      el('button', { type: 'button', class: 'quiet', 'aria-label': 'Close', onclick: () => byId('detail').close() }, '✕')),
    el('div', { class: 'sheet' },
      el('div', { class: 'large' }, picture(c.thumb, plain(`${product.title || product.id} for ${cohort.text}`, 200)),
        el('p', { class: 'muted' }, `${c.width} × ${c.height} px`, ' · ', el('a', { href: `${DATA.objects_at || '../../'}${c.uri}`, target: '_blank', rel: 'noopener' }, 'stored file'))),
      el('div', { class: 'facts' },
        clamped(cohort.text, 'h2', 'cohort'),
        clamped(product.title || product.id, 'p', 'product'),
        el('div', { class: 'judge' },
          el('button', { type: 'button', class: 'approved', 'data-mark': 'approved', onclick: () => markOpened('approved') }, 'Approve ', el('kbd', {}, 'a')),
          el('button', { type: 'button', class: 'rejected', 'data-mark': 'rejected', onclick: () => markOpened('rejected') }, 'Reject ', el('kbd', {}, 'r'))),
        el('dl', { class: 'scores' },
          fact('CLIP score', el('b', {}, score(c.clip_score))),
          fact('Product on white', score(c.neutral_score)),
          fact('Over its best own picture', signed(c.margin)),
          c.fallback ? fact('Why the original picture', words(c.fallback_reason || 'below_original')) : [],
          figureRows(c.gates)),
        el('div', { class: 'origin' },
          el('figure', {}, picture(product.photo, 'the photo from the feed'), el('figcaption', {}, 'photo')),
          el('figure', {}, picture(product.mask, 'its mask, white is product'), el('figcaption', {}, 'mask'))))),
    el('h3', {}, c.candidates.length ? `${many(c.candidates.length, 'candidate')}` : 'No candidates'),
    c.candidates.some((k) => known(k.thumb)) || !c.candidates.length ? null
      : el('p', { class: 'muted' }, 'Pictures of candidates are kept for a sample of requests (generate.gallery); of these the scores are known.'),
    el('div', { class: c.candidates.some((k) => known(k.thumb)) ? 'candidates' : 'candidates bare' }, c.candidates.map((k, i) => candidateFigure(k, c, i))),
    el('dl', { class: 'record' },
      fact('Prompt', clamped(c.prompt || '–', 'span')), fact('Negative prompt', clamped(c.negative_prompt || '–', 'span')),
      fact('Product', foreign(product.id), ' ', only('product', c.product, 'show only this')),
      product.category ? fact('Category', clamped(product.category, 'span')) : [],
      fact('Cohort', foreign(cohort.id), cohort.family ? [', ', foreign(cohort.family)] : null, ' ', only('cohort', c.cohort, 'show only this')),
      fact('Placement', `${c.placement}${c.rank ? `, no. ${c.rank + 1}` : ''}`), fact('Prompt style', words(c.prompt_style || '–')),
      fact('Creative', el('code', {}, c.creative_id)), fact('Seed', el('code', {}, c.seed)), fact('Painted in run', foreign(c.run_id || '–'))),
  ];
}

function markOpened(mark) {
  markAt(opened, mark);
  showDetailMark(gallery.list[opened]);
}

function showDetailMark(c) {
  for (const button of byId('detail').querySelectorAll('.judge button')) button.setAttribute('aria-pressed', button.dataset.mark === markOf(c));
}
