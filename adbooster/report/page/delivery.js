// Deliveries: each creative in the slots of the channels as they show it, why slots are empty, what feeds say, what is withdrawn.
const REASONS = {
  holdout: 'its product and cohort are held out: the shop’s own picture is shown, so that the lift of creatives can be told',
  needs_extension: 'a crop does not fill it: more scene would have to be painted around the creative',
  visible_seam: 'it was extended, and the creative’s edge showed each time',
  second_copy: 'it was extended, and there was a second product each time',
  people_not_asked: 'it was extended, and there were people each time',
  text_in_scene: 'it was extended, and there was writing each time',
  unsafe: 'it was extended, and what was painted was unsafe each time',
  other_recipe: 'the creative was painted by another recipe or other weights than extensions are',
  failed_extension: 'extending it failed',
  too_small: 'the creative is too small for the smallest size that the channel takes',
  product_outside: 'the product does not fit between the slot’s margins',
  over_budget: 'no file within the byte limit at the lowest quality that is allowed',
  product_altered: 'encoding would change the product more than is allowed',
  missing_mask: 'the mask of the photo it was painted from is gone',
  missing_image: 'the creative’s file is gone',
  unreadable_image: 'the creative’s file cannot be read',
  altered_master: 'the creative’s file is not the one that was proven',
  failed_readback: 'the stored file was not what was written',
  failed_delivery: 'making the file failed',
};
const LEFT_OUT = {
  original: 'are the product’s own picture, which channels have already',
  rejected: 'were rejected by a person',
  not_approved: 'are not approved by a person yet: approve them in the gallery and export the marks',
  withdrawn: 'are withdrawn',
  retired: 'are of products that left the feed',
  holdout: 'are of products and cohorts that are held out',
  not_drawn: 'are variants of which another one is shown for now',
};
const REQUIRED = { approved: 'Only creatives that a person approved are delivered', not_rejected: 'Creatives that no person rejected are delivered', any: 'All live creatives are delivered, whatever their mark' };
const DRAWN_AT_ONCE = 10; // creatives
const SIDE_PX = 180; // longer side of a slot as it is drawn
const delivered = { list: [], drawn: 0 };
const channelOf = (name) => DATA.delivery.channels.find((c) => c.name === name);
const bytes = (n) => (n < 1e6 ? `${count(Math.ceil(n / 1000))} kB` : `${(n / 1e6).toFixed(2)} MB`);
const outside = (address, text = address) => el('a', { href: address, target: '_blank', rel: 'noopener noreferrer' }, foreign(text));

function deliveries() {
  const d = DATA.delivery;
  if (!d) return;
  byId('to-delivery').hidden = byId('delivery').hidden = false;
  for (const c of d.creatives) c.text = [c.product.title, c.product.id, c.cohort.text, c.cohort.id, c.creative_id].join('\n').toLowerCase();
  fill(byId('delivery'),
    el('div', { class: 'title' }, el('h2', { id: 'delivery-title' }, 'Delivery'), el('p', { id: 'delivered', class: 'muted', role: 'status' })),
    leftOut(d.numbers || {}), channelTable(d.channels), withdrawn(d.withdrawn || {}), deliveryChoices(d),
    el('div', { id: 'slots', class: 'safe' }), el('button', { type: 'button', id: 'more-slots', onclick: drawDelivered }));
  filterDelivered();
}

/** What is live and not delivered at all, and the rule for marks. */
function leftOut(numbers) {
  const counts = Object.entries(numbers.left_out || {}).sort((a, b) => b[1] - a[1]);
  const rule = REQUIRED[numbers.require];
  return el('div', {}, rule ? el('p', { class: 'lead' }, `${rule}.`, known(numbers.delivered) ? ` ${count(numbers.delivered)} of ${many(numbers.creatives, 'live creative')} are in at least one slot.` : '') : null,
    counts.length ? el('ul', { class: 'notes', id: 'left-out' }, counts.map(([word, n]) => el('li', {}, `${count(n)} ${LEFT_OUT[word] || words(word)}`))) : null);
}

function channelTable(channels) {
  const ways = [...new Set(channels.flatMap((c) => Object.keys(c.made_by)))].sort();
  const reason = (c, [word, n]) => [el('button', { type: 'button', class: 'link', title: REASONS[word] || '', onclick: () => showOnly(c.name, word) }, `${words(word)} ${count(n)}`), ' '];
  const rows = channels.map((c) => [
    el('button', { type: 'button', class: 'link', onclick: () => showOnly(c.name, '') }, foreign(c.name)), count(c.wanted), el('span', {}, count(c.filled), el('small', {}, ` ${share(c.filled / c.wanted)}`)),
    ...ways.map((way) => (c.filled ? share((c.made_by[way] || 0) / c.filled) : '–')),
    el('span', {}, Object.entries(c.empty).sort((a, b) => b[1] - a[1]).map((e) => reason(c, e)), Object.keys(c.empty).length ? null : '–'), feedText(c)]);
  return channels.length ? table(['Channel', 'Slots', 'Filled', ...ways.map((way) => `By ${words(way)}`), 'Empty, by reason', 'Feed'], rows, 'Channels')
    : el('p', { class: 'muted' }, 'Nothing is delivered.');
}

function feedText(c) {
  const feed = c.feed, now = ((DATA.delivery.numbers.channels || {})[c.name] || {}).feed || {};
  const refused = Object.entries(now.left_out || {}).map(([word, n]) => `${count(n)} ${words(word)}`).join(', ');
  return el('span', { class: 'meaning' }, known(feed.entries) ? `${many(feed.entries, 'entry', 'entries')}, ${when(feed.published_at)}` : '', feed.problem ? ` ${feed.problem}` : '',
    !known(now.added) ? '' : now.added + now.changed + now.removed ? `; this run added ${count(now.added)}, changed ${count(now.changed)}, removed ${count(now.removed)}` : '; unchanged by this run', refused ? `; left out: ${refused}` : '');
}

/** What is withdrawn, and the files of it that no feed names and caches may hold. */
function withdrawn(found) {
  if (!found.ids) return null;
  return el('details', { class: 'withdrawn', id: 'withdrawn' },
    el('summary', {}, `Withdrawn: ${many(found.ids, 'id')}; `,
      found.may_be_cached ? `${many(found.may_be_cached, 'delivered file')} of what is withdrawn still stored, and caches may hold ${found.may_be_cached === 1 ? 'it' : 'them'} (adbooster vacuum removes what is stored)` : 'no delivered file of it is stored any more'),
    el('ul', { class: 'notes' }, found.listed.map((w) => el('li', {}, `${w.kind} `, foreign(w.value), w.withdrawn_at ? `, ${when(w.withdrawn_at)}` : '')),
      found.ids > found.listed.length ? el('li', {}, `and ${count(found.ids - found.listed.length)} more`) : null),
    found.files.length ? el('ul', { class: 'notes' }, found.files.map((f) => el('li', {}, `${f.channels.join(', ')}: `, f.urls.length ? f.urls.map((a) => [outside(a), ' ']) : foreign(f.uri))),
      found.may_be_cached > found.files.length ? el('li', {}, `and ${count(found.may_be_cached - found.files.length)} more`) : null) : null);
}

function deliveryChoices(d) {
  const option = (value, text) => el('option', { value }, text);
  const found = new Map();
  for (const c of d.creatives) for (const s of c.slots) if (s.reason) found.set(s.reason, (found.get(s.reason) || 0) + 1);
  const reasons = [...found].sort((a, b) => b[1] - a[1]);
  const safe = el('input', { type: 'checkbox', id: 'safe-areas', checked: true, onchange: (e) => byId('slots').classList.toggle('safe', e.target.checked) });
  return el('form', { class: 'choices', id: 'delivery-choices', role: 'search', 'aria-label': 'Filter deliveries', onsubmit: (e) => e.preventDefault() },
    el('label', {}, 'Channel ', el('select', { id: 'channel', onchange: filterDelivered }, option('', 'all'), d.channels.map((c) => option(c.name, plain(c.name))))),
    el('label', {}, 'Slots ', el('select', { id: 'slot-reason', onchange: filterDelivered }, option('', 'all'), option('filled', 'filled'), option('empty', 'empty, whatever the reason'),
      reasons.map(([word, n]) => option(`reason:${word}`, `empty: ${words(word)} (${count(n)})`)))),
    el('label', {}, 'Product or cohort ', el('input', { type: 'search', id: 'delivery-search', autocomplete: 'off', oninput: filterDelivered })),
    el('label', { class: 'check' }, safe, ' Safe areas'));
}

/** Show one channel's slots, empty for one reason or all. */
function showOnly(channel, reason) {
  const asked = reason ? `reason:${reason}` : '';
  byId('channel').value = channel;
  if (![...byId('slot-reason').options].some((o) => o.value === asked)) byId('slot-reason').append(el('option', { value: asked }, `empty: ${words(reason)} (none here)`));
  byId('slot-reason').value = asked;
  byId('delivery-search').value = '';
  filterDelivered();
  byId('delivery-choices').scrollIntoView();
}

function asksFor(slot, channel, state) {
  if (channel && slot.channel !== channel) return false;
  if (!state) return true;
  if (state === 'filled') return !slot.reason;
  return state === 'empty' ? Boolean(slot.reason) : state === `reason:${slot.reason}`;
}

function filterDelivered() {
  const d = DATA.delivery, channel = byId('channel').value, state = byId('slot-reason').value;
  const asked = byId('delivery-search').value.toLowerCase().split(/\s+/).filter(Boolean);
  delivered.list = [];
  for (const c of d.creatives) {
    const slots = c.slots.filter((s) => asksFor(s, channel, state));
    if (slots.length && asked.every((word) => c.text.includes(word))) delivered.list.push([c, slots]);
  }
  const slots = delivered.list.reduce((n, [, some]) => n + some.length, 0), all = d.creatives.length;
  byId('delivered').textContent = `${delivered.list.length === all ? '' : `${count(delivered.list.length)} of `}${many(all, 'creative')}, ${many(slots, 'slot')}${d.delivered > all ? `; a sample of ${count(d.delivered)} with slots` : ''}`;
  delivered.drawn = 0;
  byId('slots').replaceChildren();
  drawDelivered();
}

/** Draw some more creatives below those that are there. */
function drawDelivered() {
  const next = delivered.list.slice(delivered.drawn, delivered.drawn + DRAWN_AT_ONCE);
  byId('slots').append(...next.map(([c, slots]) => deliveredCreative(c, slots)));
  delivered.drawn += next.length;
  const left = delivered.list.length - delivered.drawn;
  byId('more-slots').hidden = left <= 0;
  byId('more-slots').textContent = `Show more (${count(left)} left)`;
  if (!delivered.list.length && DATA.delivery.creatives.length) byId('slots').append(el('p', { class: 'nothing' }, 'No slot fits these filters.'));
  refreshDelivered();
}

function deliveredCreative(c, slots) {
  const filled = c.slots.filter((s) => !s.reason).length, channels = [...new Set(slots.map((s) => s.channel))];
  return el('article', { class: 'delivered', 'data-id': c.creative_id },
    el('h3', {}, foreign(c.product.title || c.product.id, 'span'), ' ', el('span', { class: 'mark' })),
    el('p', { class: 'muted' }, foreign(c.cohort.text || c.cohort.id), ` · ${filled} of ${many(c.slots.length, 'slot')} filled · ${c.placement || ''} `, el('code', {}, c.creative_id)),
    el('div', { class: 'slots' }, slots.map((s) => slotFigure(c, s))),
    el('details', { class: 'feed' }, el('summary', {}, 'Feed rows'), channels.map((name) => feedRow(name, c.feed[name]))));
}

/** One slot as the channel shows it: the delivered file in the slot's shape under the safe area, or an empty outline. */
function slotFigure(c, s) {
  const kind = DATA.delivery.slots[`${s.channel}/${s.slot}`] || {};
  const [wide, high] = known(s.width_px) && known(s.height_px) ? [s.width_px, s.height_px] : kind.wanted_px || [1, 1];
  const told = plain(`${c.product.title || c.product.id}, ${s.channel} ${words(s.slot)}`, 200);
  const shot = el('div', { class: `slot${s.reason ? ' empty' : ''}` }, s.reason ? el('span', {}, 'empty')
    : el('a', { href: `${DATA.objects_at || '../../'}${s.uri}`, target: '_blank', rel: 'noopener', title: 'stored file' }, picture(s.thumb, told, '', DATA.delivery.pictures)),
    kind.safe_area ? safeArea(kind.safe_area) : null);
  shot.style.width = `${Math.max(24, Math.round(SIDE_PX * Math.min(1, wide / high)))}px`;
  shot.style.aspectRatio = `${wide} / ${high}`;
  return el('figure', { class: 'slot-figure', 'data-reason': s.reason || '' }, shot,
    el('figcaption', {}, el('b', {}, foreign(s.channel), ' ', foreign(words(s.slot))), s.reason ? emptyFacts(s, kind) : filledFacts(s), framed(c, s)));
}

/** What lies outside the margins that the product stays out of, in shares of the slot. */
function safeArea(m) {
  const [left, top, right, bottom] = [m.left * 100, m.top * 100, 100 - m.right * 100, 100 - m.bottom * 100];
  return svg('svg', { class: 'margins', viewBox: '0 0 100 100', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    svg('path', { d: `M0 0H100V100H0Z M${left} ${top}V${bottom}H${right}V${top}Z`, 'fill-rule': 'evenodd' }),
    svg('rect', { x: left, y: top, width: right - left, height: bottom - top, 'vector-effect': 'non-scaling-stroke' }));
}

/** The frame on the whole creative; it reaches beyond it where more scene is needed. */
function framed(c, s) {
  const f = s.frame;
  if (!f || !c.width || !c.height) return null;
  const left = Math.min(0, f.x_px), top = Math.min(0, f.y_px), right = Math.max(c.width, f.x_px + f.width_px), bottom = Math.max(c.height, f.y_px + f.height_px);
  const address = DATA.delivery.pictures[c.thumb], product = c.layout;
  const box = (name, b) => svg('rect', { class: name, x: b.x_px, y: b.y_px, width: b.width_px, height: b.height_px, 'vector-effect': 'non-scaling-stroke' });
  return svg('svg', { class: 'framed', viewBox: `${left} ${top} ${right - left} ${bottom - top}`, role: 'img', 'aria-label': `frame ${f.width_px} × ${f.height_px} px at ${f.x_px}, ${f.y_px} of ${c.width} × ${c.height}` },
    svg('rect', { class: 'whole', x: 0, y: 0, width: c.width, height: c.height }),
    address ? svg('image', { href: address, x: 0, y: 0, width: c.width, height: c.height, preserveAspectRatio: 'none' }) : [],
    product ? box('product', product) : [], box('frame', f));
}

function emptyFacts(s, kind) {
  const wanted = kind.min_px ? `at least ${kind.min_px[0]} × ${kind.min_px[1]} px, ${kind.formats.join(' or ')}, up to ${bytes(kind.max_bytes)}` : null;
  return [el('p', { class: 'reason' }, REASONS[s.reason] || words(s.reason)), wanted ? el('p', {}, wanted) : null];
}

function filledFacts(s) {
  const lossy = known(s.psnr_db) ? `product ${s.psnr_db.toFixed(1)} dB, ΔE ${s.delta_e_mean.toFixed(2)} (p99 ${s.delta_e_p99.toFixed(2)})` : 'lossless';
  const shown = s.in_feed === null ? null : el('p', { class: s.in_feed ? '' : 'muted' }, s.in_feed ? 'in the feed' : 'not in the feed: it names others of this product, or leaves it out');
  return [
    el('p', {}, `${s.width_px} × ${s.height_px} ${s.format}, ${bytes(s.size_bytes)}${known(s.quality) ? `, quality ${s.quality}` : ''}`), el('p', {}, lossy), el('p', {}, `made by ${words(s.made_by || 'unknown')}${s.made_by === 'extension' && known(s.seam) ? `, seam ${s.seam.toFixed(2)}` : ''}${(s.refused_why || []).length ? ` (not extended: ${s.refused_why.map(words).join(', ')})` : ''}`),
    el('p', {}, 'labelled ', el('span', { class: 'label' }, s.digital_source_type || 'nothing'), 'signed_by' in s ? (s.signed_by ? [', signed by ', foreign(s.signed_by)] : ', not signed') : ''),
    shown, s.url ? el('p', {}, outside(s.url, 'public address')) : null,
  ];
}

function feedRow(name, row) {
  const problem = (channelOf(name) || { feed: {} }).feed.problem;
  if (!row) return el('p', { class: 'muted' }, foreign(name), `: ${problem || 'no entry in its feed'}`);
  return el('div', {}, el('h4', {}, foreign(name)), el('dl', { class: 'record' }, row.facts.map(([key, value, isAddress]) => [el('dt', {}, foreign(key)), el('dd', {}, isAddress ? outside(value) : foreign(value))])),
    row.more ? el('p', { class: 'muted' }, `and ${count(row.more)} more values`) : null);
}

/** The marks that hold now, those of this browser too. */
function refreshDelivered() {
  if (!DATA.delivery) return;
  for (const made of byId('slots').querySelectorAll('article')) {
    const c = DATA.delivery.creatives.find((one) => one.creative_id === made.dataset.id);
    made.dataset.mark = markOf(c) || '';
    made.querySelector('.mark').textContent = markOf(c) || '';
  }
}
