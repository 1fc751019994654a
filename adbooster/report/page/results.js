// The headline, the plots beneath it, and the evaluation where there is one.
const INTERVAL = '95\u00a0% intervals';

function results() {
  const n = DATA.numbers, all = (n.uplift || {}).all;
  const products = new Set(DATA.creatives.map((c) => c.product)).size, cohorts = new Set(DATA.creatives.map((c) => c.cohort)).size;
  const empty = !DATA.live;
  const sentence = empty
    ? 'Nothing is live.'
    : `${many(DATA.live, 'creative')} live${DATA.live === DATA.creatives.length ? ` for ${many(products, 'product')} and ${many(cohorts, 'cohort')}` : ''}.`;
  const painted = n.requests === undefined ? '' : n.painted
    ? ` This run painted ${many(n.painted, 'request')}${n.already_live ? ` and left ${count(n.already_live)} as they were` : ''}.`
    : ' This run had nothing to paint.';
  fill(byId('results'), el('div', { class: 'hero' }, el('div', {},
    el('p', { class: 'eyebrow' }, 'Run ', foreign(DATA.run_id), ' · ', when(DATA.made_at)),
    el('h1', { id: 'headline' }, headline(all, empty)),
    el('p', { class: 'lead' }, sentence, painted)), highlights()),
    n.why_not ? el('p', { class: 'notice' }, el('b', {}, 'Nothing was published. '), foreign(n.why_not)) : null,
    onlyOriginals() ? el('p', { class: 'notice' }, el('b', {}, 'Every creative is the original picture. '), 'No painting passed its gates and scored above it; the reject words below say why.') : null,
    el('dl', { class: 'figures' }, headlineFigures(n)),
    el('div', { class: 'plots' }, plots(n)),
    left(n));
}

/** The most valuable requests that the night left, with the factors that make their value. */
function left(n) {
  const rows = n.left_most_valuable || [];
  if (!rows.length) return null;
  const factors = ['weight_factor', 'size_factor', 'age_factor', 'gain_factor'];
  const figure = (value) => (known(value) ? Number(value).toPrecision(3) : '–');
  return el('div', {},
    el('h3', {}, `The most valuable of ${many(n.left, 'request')} left for the next night`),
    el('p', { class: 'muted' }, 'A class comes before the next, unless that is set off; in it the value orders, which is the product of its factors.'),
    table(['Product', 'Cohort', 'Placement', 'Class', 'Value', 'Weight', 'Cohort size', 'Age', 'Gain', 'Margin live', 'Margin expected'], rows.map((r) => [
      foreign(r.product_id), foreign(r.cohort_id), foreign(r.placement), words(r.value_class), figure(r.value),
      ...factors.map((name) => `× ${figure(r[name])}`), score(r.margin), score(r.expected_margin)]), 'Left for the next night'));
}

/** The paintings furthest above their product's own pictures, each of another product and cohort. */
function highlights() {
  const taken = new Set(), chosen = [];
  const best = DATA.creatives.filter((c) => !c.fallback && known(c.thumb)).sort((a, b) => b.margin - a.margin);
  for (const c of best) {
    const keys = [`p${c.product}`, `c${c.cohort}`];
    if (chosen.length < 6 && !keys.some((k) => taken.has(k))) {
      chosen.push(c);
      keys.forEach((k) => taken.add(k));
    }
  }
  if (chosen.length < 3) return null;
  return el('div', { class: 'highlights' }, chosen.slice(0, chosen.length < 6 ? 3 : 6).map((c) => {
    const told = plain(`${DATA.products[c.product].title || DATA.products[c.product].id} for ${DATA.cohorts[c.cohort].text}`, 160);
    return el('button', { type: 'button', title: told, 'aria-label': `Open ${told}`, onclick: () => openThis(c) }, picture(c.thumb, ''));
  }));
}

const onlyOriginals = () => DATA.creatives.length > 0 && DATA.creatives.every((c) => c.fallback);

function headline(all, empty) {
  if (empty) return 'No creatives yet';
  if (!all || !known(all.uplift_share)) return 'What is live';
  const means = `${score(all.clip_score)} on average, ${score(all.neutral_score)} on white`;
  const around = known(all.low) ? `; 95 % interval ${uplift(all.low)} to ${uplift(all.high)}` : '';
  return el('span', {}, el('b', {}, uplift(all.uplift_share)), 'CLIP similarity over the product on white', el('small', {}, means + around));
}

function headlineFigures(n) {
  const proof = DATA.proof || {}, told = [];
  const add = (name, value, note) => told.push(el('div', {}, el('dt', {}, name), el('dd', {}, value, note ? el('small', {}, note) : null)));
  if (known(proof.max_diff) && !proof.lossy) add('Product pixels changed', proof.max_diff === 0 ? '0' : `${proof.max_diff}/255`, `in ${many(DATA.live, 'stored file')}`);
  if (proof.lossy) add('Product PSNR, lowest', `${proof.min_psnr_db.toFixed(1)} dB`, `in ${many(proof.lossy, 'lossy file')}`);
  if (known(n.coverage) && n.requests) add('Requests filled', share(n.coverage), `of ${count(n.requests)}`);
  if (known(n.published)) add('Published', count(n.published), n.retired ? `${count(n.retired)} retired` : 'tonight');
  if (DATA.live) add('Original picture kept', share(DATA.fallbacks / DATA.live), `${count(DATA.fallbacks)} of ${count(DATA.live)}`);
  if (n.painted) add('Painter time', `${(n.gpu_s / n.painted).toFixed(2)} s`, 'a request');
  if (known(n.painter_busy)) add('Painters busy', share(n.painter_busy), 'of their time in networks');
  const m = n.marks || {};
  if (m.approved || m.rejected) add('Marks honoured', count(m.approved + m.rejected), `${count(m.approved)} approved, ${count(m.rejected)} rejected${m.unknown ? `, ${count(m.unknown)} unknown` : ''}`);
  return told;
}

function plots(n) {
  const drawn = [];
  const families = Object.entries(n.uplift || {}).sort(([a], [b]) => (a === 'all') - (b === 'all'));
  if (families.length) {
    const rows = families.map(([name, u]) => ({ name: name || '(none)', value: u.uplift_share, low: u.low, high: u.high, kind: name === 'all' ? 'all' : '' }));
    drawn.push(plot('Uplift by family', `CLIP score of winners over the product on white; ${INTERVAL}`, (width) => intervalBars(rows, width, 'Uplift by family')));
  }
  if (DATA.histogram.edges) {
    const note = el('span', {}, el('i', { class: 'key neutral' }), 'product on white ', el('i', { class: 'key winner' }), 'winner');
    drawn.push(plot('CLIP scores', note, (width) => histogram(DATA.histogram, width)));
  }
  const groups = [
    ['Candidates turned down', 'by gates, in this run', n.candidate_rejects],
    ['Original picture kept', 'live creatives, by reason', DATA.rejects.fallbacks],
    ['Pictures of the feed not used', 'by what was wrong with them', DATA.rejects.photos],
  ];
  const rejects = groups.map(([title, note, counts]) => {
    const rows = Object.entries(counts || {}).sort((a, b) => b[1] - a[1]);
    return rows.length ? plot(title, note, (width) => countBars(rows, width, title)) : null;
  });
  if (present(rejects).length) drawn.push(el('div', { class: 'stack' }, rejects));
  return drawn;
}

function table(heads, rows, name) {
  return el('div', { class: 'wide', tabindex: 0, role: 'region', 'aria-label': name },
    el('table', {}, el('thead', {}, el('tr', {}, heads.map((h) => el('th', { scope: 'col' }, h)))),
      el('tbody', {}, rows.map((cells) => el('tr', {}, cells.map((cell, i) => el(i ? 'td' : 'th', i ? {} : { scope: 'row' }, cell)))))));
}

/** A ratio with its interval, or, where a ratio says nothing, the difference of the scores. */
function interval(ratio, difference) {
  const [told, shown] = ratio && known(ratio.mean) ? [ratio, uplift] : [difference, signed];
  if (!told || !known(told.mean)) return '–';
  return el('span', {}, shown(told.mean), known(told.low) && known(told.high) ? el('small', {}, ` ${shown(told.low)} to ${shown(told.high)}`) : null);
}

function evaluation() {
  const found = DATA.evaluation;
  if (!found) return;
  const at = byId('evaluation'), experiments = found.experiments || [], figures = found.figures || [];
  byId('to-evaluation').hidden = at.hidden = false;
  const kinds = [...new Set(experiments.map((e) => `${e.scorer}\n${e.pick}`))];
  const holder = el('div', {});
  const named = (kind) => { const [scorer, pick] = kind.split('\n'); return `${scorer}${found[scorer] ? ` (${found[scorer]})` : ''}, ${pick}`; };
  const choose = (kind) => fill(holder, experiment(experiments.filter((e) => `${e.scorer}\n${e.pick}` === kind)));
  const choice = kinds.length > 1 ? el('label', { class: 'choice' }, 'Scored by ', el('select', { onchange: (e) => choose(e.target.value) }, kinds.map((k) => el('option', { value: k }, plain(named(k)))))) : null;
  fill(at,
    el('div', { class: 'title' }, el('h2', { id: 'evaluation-title' }, 'Evaluation'), choice),
    experiments.length ? holder : el('p', { class: 'muted' }, 'No experiment was run.'),
    figures.length ? el('h3', {}, 'What CLIP does not see') : null,
    figures.length ? table(['Figure', 'Value', 'n', 'Meaning'], figures.map((f) => [
      foreign(words(f.name)), el('span', {}, quantity(f.value, f.unit), known(f.low) && known(f.high) ? el('small', {}, ` ${quantity(f.low, f.unit)} to ${quantity(f.high, f.unit)}`) : null),
      count(f.n), foreign(f.meaning || '', 'span', { class: 'meaning' })]), 'Figures') : null,
    (found.notes || []).length ? el('ul', { class: 'notes' }, found.notes.map((note) => foreign(note, 'li'))) : null);
  if (kinds.length) choose(kinds[0]);
}

function quantity(value, unit) {
  if (!known(value)) return '–';
  if (unit === 'share') return share(value);
  return `${Number(value).toLocaleString('en', { maximumFractionDigits: 3 })}${unit ? ` ${unit}` : ''}`;
}

function experiment(rows) {
  const names = [...new Set(rows.map((e) => e.experiment))];
  const families = [...new Set(rows.map((e) => e.family))].sort((a, b) => (a === 'all') - (b === 'all'));
  const find = (name, family) => rows.find((e) => e.experiment === name && e.family === family);
  const drawing = (key) => plot(
    key === 'uplift_neutral' ? 'Over the product on white' : "Over the catalog's own scene", INTERVAL,
    (width) => intervalPoints(families.map((f) => ({ name: f, points: names.map((x) => (find(x, f) || {})[key]) })), names, width, 'Uplift by family and experiment'));
  const keys = ['uplift_neutral', 'uplift_contextual'].filter((key) => rows.some((e) => e[key] && known(e[key].mean)));
  return [
    el('p', { class: 'legend' }, names.map((name, i) => el('span', {}, el('i', { class: `key s${i % 6}` }), foreign(name), ' '))),
    el('div', { class: 'plots two' }, keys.map(drawing)),
    table(['Experiment', 'Family', 'n', 'Creative', 'On white', 'Own scene', 'Over white', 'Over own scene'], rows.map((e) => [
      foreign(e.experiment), foreign(e.family), count(e.n), score(e.creative), score(e.neutral), score(e.contextual), interval(e.uplift_neutral, e.difference_neutral), interval(e.uplift_contextual, e.difference_contextual)]), 'Experiments'),
  ];
}
