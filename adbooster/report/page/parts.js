// Small parts: elements whose text is text, numbers as people read them, messages.
const DATA = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);

/** An element; strings among its children become text, whatever they hold. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...present(children));
  return made;
}

const present = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

/** Put these children in place of what an element holds. */
const fill = (holder, ...children) => holder.replaceChildren(...present(children));

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.flat());
  return made;
}

/** Text of a feed or a cohort: apart from the line it stands in, in the direction its first letters have. */
const foreign = (text, tag = 'bdi', attributes = {}) => el(tag, { dir: 'auto', ...attributes }, String(text));

/** The same, cut to a few lines with a button that shows the rest. */
function clamped(text, tag = 'p', name = '') {
  const body = foreign(text, tag, { class: `clamped ${name}` });
  if (String(text).length <= 160) return body;
  const more = el('button', { type: 'button', class: 'link', 'aria-expanded': 'false' }, 'show all');
  more.addEventListener('click', () => {
    const open = body.classList.toggle('open');
    more.textContent = open ? 'show less' : 'show all';
    more.setAttribute('aria-expanded', open);
  });
  return el('div', {}, body, more);
}

/** For option elements, which cannot hold elements: short, and without characters that turn the direction. */
function plain(text, most = 70) {
  const flat = String(text).replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, '').replace(/\s+/g, ' ');
  return flat.length > most ? `${flat.slice(0, most - 1)}…` : flat;
}

const known = (value) => value !== null && value !== undefined && Number.isFinite(Number(value));
const score = (value) => (known(value) ? value.toFixed(3) : '–');
const signed = (value) => (known(value) ? `${value >= 0 ? '+' : '−'}${Math.abs(value).toFixed(3)}` : '–');
const share = (value, digits = 1) => (known(value) ? `${(value * 100).toFixed(digits)} %` : '–');
const uplift = (value) => (known(value) ? `${value >= 0 ? '+' : '−'}${Math.abs(value * 100).toFixed(1)} %` : '–');
const count = (value) => (known(value) ? Number(value).toLocaleString('en') : '–');
const words = (text) => String(text).replaceAll('_', ' ');
const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;

function when(iso) {
  const date = new Date(iso);
  return Number.isNaN(date.getTime())
    ? ''
    : date.toLocaleString('en', { dateStyle: 'long', timeStyle: 'short', timeZone: 'UTC' }) + ' UTC';
}

function say(text, wrong = false) {
  byId('said').textContent = text;
  byId('said').classList.toggle('wrong', wrong);
}

/** localStorage, or nothing where it is not allowed. */
const kept = {
  get(key) {
    try { return localStorage.getItem(key); } catch { return null; }
  },
  set(key, value) {
    try { localStorage.setItem(key, value); return true; } catch { return false; }
  },
};

/** The picture of a number among addresses, or an empty place. `alt` is plain text. */
function picture(number, alt, name = '', addresses = DATA.pictures) {
  const address = addresses[number];
  if (number === null || number === undefined || !address) return el('div', { class: `gone ${name}` }, 'no picture');
  return el('img', { src: address, alt, class: name, loading: 'lazy', decoding: 'async', draggable: 'false' });
}
