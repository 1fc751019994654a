// Approvals and rejections: kept in this browser, exported as a file for the next night, and read back.
const MARKS_FORMAT = 'adbooster-marks-1';
const MARKS = ['approved', 'rejected', 'cleared'];
const FACTS = ['request_id', 'product_id', 'cohort_id', 'placement', 'sha256'];
const marksKey = `adbooster-marks:${DATA.run_id}`;
const marks = new Map();
let remembered = true;

function isMark(m) {
  return m !== null && typeof m === 'object' && /^[0-9a-f]{16}$/.test(m.creative_id) && MARKS.includes(m.mark)
    && FACTS.every((name) => m[name] === undefined || m[name] === null || typeof m[name] === 'string');
}

/** The mark that holds for a creative: approved, rejected or null. */
function markOf(creative) {
  const own = marks.get(creative.creative_id);
  const mark = own ? own.mark : creative.mark;
  return mark === 'cleared' ? null : mark;
}

/** Give a mark, or take it back if the creative has it. */
function toggleMark(creative, mark) {
  const now = markOf(creative) === mark ? 'cleared' : mark;
  const before = creative.mark || 'cleared';
  if (now === before) marks.delete(creative.creative_id);
  else marks.set(creative.creative_id, { ...factsOf(creative), mark: now });
  keepMarks();
  tellMarks();
  say(now === 'cleared' ? 'Mark taken back.' : `${now[0].toUpperCase()}${now.slice(1)}.`);
}

function factsOf(creative) {
  return {
    creative_id: creative.creative_id,
    request_id: creative.request_id,
    product_id: DATA.products[creative.product].id,
    cohort_id: DATA.cohorts[creative.cohort].id,
    placement: creative.placement,
    sha256: creative.sha256,
  };
}

function keepMarks() {
  remembered = kept.set(marksKey, JSON.stringify([...marks.values()]));
}

function loadMarks() {
  try {
    for (const m of JSON.parse(kept.get(marksKey)) || []) if (isMark(m)) marks.set(m.creative_id, m);
  } catch { /* what stands there is not ours */ }
}

function tellMarks() {
  const counts = { approved: 0, rejected: 0 };
  for (const creative of DATA.creatives) if (markOf(creative)) counts[markOf(creative)] += 1;
  byId('marked').textContent = `${count(counts.approved)} approved, ${count(counts.rejected)} rejected`
    + (marks.size && !remembered ? ' (this browser keeps nothing: export before you leave)' : '');
  byId('export').disabled = marks.size === 0;
}

function exportMarks() {
  const sorted = [...marks.values()].sort((a, b) => (a.creative_id < b.creative_id ? -1 : 1));
  const by = byId('marked-by').value.trim() || null;
  const file = { format: MARKS_FORMAT, run_id: DATA.run_id, by, exported_at: new Date().toISOString(), marks: sorted };
  const address = URL.createObjectURL(new Blob([`${JSON.stringify(file, null, 1)}\n`], { type: 'application/json' }));
  el('a', { href: address, download: `marks-${String(DATA.run_id).replace(/[^\w.-]/g, '_')}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  say(`${many(marks.size, 'mark')} exported. Give the file to the next night as generate.marks_uri.`);
}

/** Lay the marks of a file over those here; a file that is not ours changes nothing. */
async function importMarks(file) {
  let found;
  try {
    found = JSON.parse(await file.text());
  } catch {
    return say(`${plain(file.name)} is not JSON; nothing was read.`, true);
  }
  if (!found || found.format !== MARKS_FORMAT || !Array.isArray(found.marks) || !found.marks.every(isMark)) {
    return say(`${plain(file.name)} is not a marks file of this page; nothing was read.`, true);
  }
  const here = new Set(DATA.creatives.map((c) => c.creative_id));
  for (const m of found.marks) marks.set(m.creative_id, m);
  keepMarks();
  tellMarks();
  const away = found.marks.filter((m) => !here.has(m.creative_id)).length;
  say(`${many(found.marks.length, 'mark')} read${away ? `, ${count(away)} of them of creatives that are not on this page` : ''}.`);
}
