// Learning: what creatives add over originals, who is shown what, what the learned scores know, and what was retired.
function learning() {
  const found = DATA.learning;
  if (!found) return;
  byId('to-learning').hidden = byId('learning').hidden = false;
  const lift = found.lift || {}, together = lift.together || {}, families = lift.families || [];
  fill(byId('learning'),
    el('div', { class: 'title' }, el('h2', { id: 'learning-title' }, 'Learning'), el('p', { class: 'muted' }, foreign(found.day || ''))),
    el('p', { class: 'lead' }, liftSentence(together)),
    lift.robot_clicks ? el('p', { class: 'muted' }, `${many(lift.robot_clicks, 'click')} beyond what people make ${lift.robot_clicks === 1 ? 'is' : 'are'} not counted.`) : null,
    el('div', { class: 'plots two' }, [
      (together.path || []).some((d) => d.lift && known(d.lift.mean)) ? plot('Lift over originals, day by day', `${INTERVAL} that hold on all days together, so every morning may be looked at`, (width) => band(together.path, width, 'Lift over originals day by day')) : null,
      families.length ? plot('By family', `clicks an impression over the originals of held-out pairs; ${INTERVAL}`, (width) => intervalBars([...families, together].map((g) => ({ name: g.family || '(none)', ...(g.lift || {}), value: (g.lift || {}).mean, kind: g.family === 'all' ? 'all' : '' })), width, 'Lift by family')) : null,
    ]),
    families.length ? table(['Family', 'Pairs', 'Held out', 'Impressions', 'of originals', 'Clicks', 'of originals', 'Lift', 'Remark'], [...families, together].map((g) => [
      foreign(g.family || '(none)'), count(g.pairs), count(g.control_pairs), count(g.impressions), count(g.control_impressions), count(g.clicks), count(g.control_clicks), interval(g.lift, null), foreign(g.note || (g.sure ? 'sure' : ''), 'span', { class: 'meaning' })]), 'Lift by family') : null,
    allocated(found.allocation || {}), running(found.experiments || []), learned(found.reward), usability(found.usability), retired(found.retired || [], found.retired_count),
    (found.notes || []).length ? el('ul', { class: 'notes' }, found.notes.map((note) => foreign(note, 'li'))) : null);
}

function liftSentence(g) {
  if (!g.lift || !known(g.lift.mean)) return g.note ? `No lift can be told: ${g.note}.` : 'No lift can be told yet.';
  const told = `Creatives bring ${uplift(g.lift.mean)} clicks an impression over the originals of ${many(g.control_pairs, 'held-out pair')}`;
  if (!known(g.lift.low)) return `${told}; ${g.note || 'no interval can be given yet'}.`;
  return `${told}, ${uplift(g.lift.low)} to ${uplift(g.lift.high)}: ${g.sure ? 'this is sure' : 'not sure yet'}.`;
}

/** A line with its interval as an area: days {day, lift: {mean, low, high}}. */
function band(days, width, spoken) {
  const shown = days.filter((d) => d.lift && known(d.lift.mean)), height = 220, left = 52, right = 12, top = 8, bottom = 24;
  const bounds = shown.flatMap((d) => [d.lift.mean, d.lift.low, d.lift.high]).filter(known);
  const typical = 4 * Math.max(0.05, ...shown.slice(-7).flatMap((d) => [d.lift.low, d.lift.high, d.lift.mean]).filter(known).map(Math.abs)); // first days are wide
  const from = Math.max(Math.min(0, ...bounds), -typical), to = Math.min(Math.max(0, ...bounds), typical) || 1;
  const first = Date.parse(shown[0].day), last = Date.parse(shown[shown.length - 1].day);
  const x = (day) => left + ((Date.parse(day) - first) / (last - first || 1)) * (width - left - right);
  const y = (v) => top + ((to - Math.min(to, Math.max(from, v))) / (to - from || 1)) * (height - top - bottom);
  const at = (name) => shown.filter((d) => known(d.lift[name])).map((d) => `${x(d.day).toFixed(1)} ${y(d.lift[name]).toFixed(1)}`);
  const low = at('low'), high = at('high');
  return canvas(width, height, spoken,
    ...ticks(from, to, 4).flatMap((t) => [
      svg('line', { x1: left, x2: width - right, y1: y(t), y2: y(t), class: t === 0 ? 'zero' : 'rule' }),
      label(left - 6, y(t) + 4, `${Math.round(t * 100)} %`, 'tick', 'end')]),
    ...(low.length ? [svg('path', { d: `M${high.join('L')}L${low.reverse().join('L')}Z`, class: 'band' })] : []),
    svg('path', { d: `M${at('mean').join('L')}`, class: 'line' }),
    label(left, height - 8, plain(shown[0].day), 'tick'), label(width - right, height - 8, plain(shown[shown.length - 1].day), 'tick', 'end'));
}

function allocated(a) {
  if (!a.places) return null;
  return el('div', {}, el('h3', {}, 'Variants'),
    el('p', {}, `${many(a.places, 'place')} of product, cohort and placement ${a.places === 1 ? 'has' : 'have'} several variants, ${count(a.variants)} together; the one that is shown most has ${share(a.mean_largest)} of its place on average, and ${count(a.decided)} ${a.decided === 1 ? 'place has' : 'places have'} one with over 80 %.`));
}

/** Experiments, running ones first, with the share and the click-through rate of each arm by family. */
function running(experiments) {
  if (!experiments.length) return null;
  const rows = [...experiments].sort((a, b) => Boolean(a.ended) - Boolean(b.ended)).flatMap((e) => (e.arms || []).map((arm) => [
    foreign(e.name), e.ended ? el('span', {}, 'ended on ', foreign(e.ended)) : 'running', foreign(arm.arm), foreign(arm.family || 'all'), share(arm.weight), count(arm.impressions), count(arm.clicks),
    known(arm.ctr) ? el('span', {}, share(arm.ctr, 2), el('small', {}, ` ${share(arm.ctr_low, 2)} to ${share(arm.ctr_high, 2)}`)) : '–']));
  return el('div', { id: 'experiments' }, el('h3', {}, 'Experiments'), table(['Experiment', 'State', 'Arm', 'Family', 'Share', 'Impressions', 'Clicks', 'Click-through rate'], rows, 'Experiments'));
}

function learned(r) {
  if (!r) return null;
  const f = r.figures;
  const groups = [...Object.entries(f.families || {}), ['all', f.total]], weights = Object.entries(f.weights || {}).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 12);
  return el('div', { id: 'learned' }, el('h3', {}, 'Learned score'),
    el('p', {}, f.surely_better ? 'It orders surely better than CLIP on products it has not seen.' : 'It is not surely better than CLIP on products it has not seen, so generate refuses it.', r.revision ? [' Revision ', foreign(r.revision), '.'] : null),
    table(['Family', 'Creatives', 'Clicks', 'AUC', 'CLIP', 'Gain', 'Log-loss', 'CLIP', 'Gain'], groups.map(([name, c]) => [foreign(name || '(none)'), count(c.creatives), count(c.clicks), score(c.auc), score(c.clip_auc), difference(c.auc_gain, 3), precise(c.log_loss), precise(c.clip_log_loss), difference(c.log_loss_gain, 5)]), 'Learned score against CLIP'),
    el('div', { class: 'plots two' }, [
      (f.calibration || []).length ? plot('Calibration', f.clicks ? 'predicted and observed click-through rate of products held out' : 'predicted and observed share of approvals, products held out', (width) => calibration(f.calibration, width)) : null,
      weights.length ? plot('What it likes', 'log odds a standard deviation', (width) => intervalBars(weights.map(([name, value]) => ({ name: words(name), value })), width, 'Weights', 22, (v) => v.toFixed(2), (t) => t.toFixed(2))) : null]),
    (f.values || []).length ? table(['What another ranker would bring', 'By the learned score', 'By CLIP', 'Gain', 'Impressions it rests on'], f.values.map((v) => [words(v.method), rate(v.by_score), rate(v.by_clip), rate(v.gain), count(Math.round(v.effective_impressions))]), 'Off-policy values') : null);
}

const precise = (value) => (known(value) ? Number(value).toFixed(5) : '–');
const difference = (d, digits) => (d && known(d.mean) ? el('span', {}, d.mean.toFixed(digits), known(d.low) ? el('small', {}, ` ${d.low.toFixed(digits)} to ${d.high.toFixed(digits)}`) : null) : '–');
const rate = (d) => (d && known(d.mean) ? el('span', {}, share(d.mean, 2), known(d.low) ? el('small', {}, ` ${share(d.low, 2)} to ${share(d.high, 2)}`) : null) : '–');

/** Points predicted against observed with intervals, and the line on which both agree. */
function calibration(bins, width) {
  const height = 240, left = 46, right = 12, top = 8, bottom = 38;
  const most = Math.max(...bins.flatMap((b) => [b.predicted, b.observed.mean, b.observed.high]).filter(known)) || 1;
  const x = (v) => left + (v / most) * (width - left - right), y = (v) => height - bottom - (Math.max(0, v) / most) * (height - top - bottom);
  const digits = most < 0.2 ? 1 : 0;
  return canvas(width, height, 'Calibration: predicted and observed rate',
    ...ticks(0, most, 4).flatMap((t) => [label(x(t), height - bottom + 15, share(t, digits), 'tick', 'middle'), label(left - 6, y(t) + 4, share(t, digits), 'tick', 'end'), svg('line', { x1: left, x2: width - right, y1: y(t), y2: y(t), class: t === 0 ? 'zero' : 'rule' })]),
    svg('path', { d: `M${x(0)} ${y(0)}L${x(most)} ${y(most)}`, class: 'zero' }),
    ...bins.flatMap((b) => [
      ...(known(b.observed.low) ? [svg('path', { d: `M${x(b.predicted)} ${y(b.observed.low)}V${y(b.observed.high)}`, class: 'interval' })] : []),
      svg('circle', { cx: x(b.predicted), cy: y(b.observed.mean), r: 4, class: 'point s0' }, svg('title', {}, `predicted ${share(b.predicted, 2)}, observed ${share(b.observed.mean, 2)}`))]),
    label((left + width - right) / 2, height - 6, 'predicted', 'tick', 'middle'));
}

function usability(r) {
  if (!r) return null;
  const f = r.figures;
  const told = known(f.threshold) ? `It may reject: of what it rejects on products and cohorts it has not seen, people would have rejected ${share((f.precision || {}).mean)}; it finds ${share((f.recall || {}).mean)} of what they reject.` : `It must not reject anything: ${f.why}.`;
  return el('div', { id: 'usability' }, el('h3', {}, 'Usability gate'), el('p', {}, foreign(told), r.revision ? [' Revision ', foreign(r.revision), '.'] : null),
    (f.calibration || []).length ? el('div', { class: 'plots two' }, plot('Calibration', 'predicted and observed share of unusable pictures', (width) => calibration(f.calibration, width))) : null);
}

function retired(rows, all) {
  if (!rows.length) return null;
  return el('details', { id: 'retired' }, el('summary', {}, `${many(all, 'variant')} retired, surely worse than another of its place${all > rows.length ? `; the ${count(rows.length)} that lose most clicks` : ''}`),
    table(['Creative', 'Product', 'Cohort', 'Impressions', 'Click-through rate', 'of the best'], rows.map((r) => [foreign(r.creative_id), foreign(r.product_id), foreign(r.cohort_id), count(r.impressions), share(r.ctr, 2), share(r.best_ctr, 2)]), 'Retired variants'));
}
