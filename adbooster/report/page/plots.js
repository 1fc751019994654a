// Plots: small SVGs drawn at the width they have, in the colours of the page.
function plot(title, note, draw) {
  const holder = el('div', { class: 'drawing' });
  const redraw = () => {
    const width = Math.round(holder.clientWidth);
    if (width && holder.dataset.width !== String(width)) {
      holder.dataset.width = width;
      holder.replaceChildren(draw(width));
    }
  };
  new ResizeObserver(redraw).observe(holder);
  return el('figure', { class: 'plot' }, el('figcaption', {}, el('h3', {}, title), note && el('p', {}, note)), holder);
}

const label = (x, y, text, name = '', anchor = 'start') =>
  svg('text', { x, y, class: name, 'text-anchor': anchor }, text);

function canvas(width, height, spoken, ...children) {
  return svg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': spoken }, ...children);
}

/** Round numbers between low and high, about `n` of them. */
function ticks(low, high, n = 4) {
  const raw = (high - low) / n || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step / 1e6; t += step) found.push(Math.abs(t) < step / 1e6 ? 0 : t);
  return found;
}

/** Bars with intervals: rows {name, value, low, high, note, kind}; values are shares, unless `told` and `mark` say them otherwise. */
function intervalBars(rows, width, spoken, high = 26, told = uplift, mark = (t) => `${Math.round(t * 100)} %`) {
  const left = Math.min(150, width * 0.32), right = 76, top = 4, bottom = 24;
  const ends = rows.flatMap((r) => [r.value, r.low, r.high]).filter(known);
  const from = Math.min(0, ...ends), to = Math.max(0, ...ends) || 1;
  const x = (v) => left + ((v - from) / (to - from || 1)) * (width - left - right);
  const height = top + rows.length * high + bottom;
  const parts = ticks(from, to, width < 420 ? 3 : 5).map((t) => [
    svg('line', { x1: x(t), x2: x(t), y1: top, y2: height - bottom, class: t === 0 ? 'zero' : 'rule' }),
    label(x(t), height - 8, mark(t), 'tick', 'middle'),
  ]);
  rows.forEach((r, i) => {
    const y = top + i * high + high / 2;
    parts.push(label(0, y + 4, plain(r.name, Math.floor(left / 7)), 'name'));
    if (!known(r.value)) {
      parts.push(label(x(0) + 6, y + 4, 'not defined', 'tick'));
      return;
    }
    const bar = { x: Math.min(x(0), x(r.value)), y: y - 6, width: Math.abs(x(r.value) - x(0)), height: 12, rx: 2 };
    parts.push(svg('rect', { ...bar, class: `bar ${r.kind || ''}` }, svg('title', {}, `${plain(r.name)}: ${told(r.value)}`)));
    if (known(r.low) && known(r.high)) {
      parts.push(svg('path', { d: `M${x(r.low)} ${y}H${x(r.high)}M${x(r.low)} ${y - 4}v8M${x(r.high)} ${y - 4}v8`, class: 'interval' }));
    }
    parts.push(label(width, y + 4, told(r.value), 'value', 'end'));
  });
  return canvas(width, height, spoken, ...parts.flat());
}

/** Two counts over the same bins: {edges, winners, neutral}. */
function histogram(data, width) {
  const left = 4, right = 4, top = 8, bottom = 24, height = 168;
  const most = Math.max(1, ...data.winners, ...data.neutral);
  const low = data.edges[0], high = data.edges[data.edges.length - 1];
  const x = (v) => left + ((v - low) / (high - low)) * (width - left - right);
  const y = (n) => height - bottom - (n / most) * (height - top - bottom);
  const steps = (counts) => {
    const tops = counts.map((n, i) => `H${x(data.edges[i]).toFixed(1)}V${y(n).toFixed(1)}H${x(data.edges[i + 1]).toFixed(1)}`);
    return `M${x(low)} ${y(0)}${tops.join('')}V${y(0)}Z`;
  };
  return canvas(width, height, 'Histogram of CLIP scores: products on white, and winners',
    svg('path', { d: steps(data.neutral), class: 'area neutral' }),
    svg('path', { d: steps(data.winners), class: 'area winner' }),
    svg('line', { x1: left, x2: width - right, y1: y(0), y2: y(0), class: 'zero' }),
    ...ticks(low, high).map((t) => label(Math.min(Math.max(x(t), 12), width - 14), height - 8, t.toFixed(2), 'tick', 'middle')));
}

/** Counts by word, longest first: rows [word, n]. */
function countBars(rows, width, spoken) {
  const left = Math.min(170, width * 0.45), right = 56, high = 24;
  const most = Math.max(1, ...rows.map((r) => r[1]));
  const parts = rows.map(([word, n], i) => {
    const y = i * high + high / 2;
    const long = Math.max(2, (n / most) * (width - left - right));
    return [
      label(0, y + 4, words(word), 'name'),
      svg('rect', { x: left, y: y - 5, width: long, height: 10, rx: 2, class: 'bar reject' }),
      label(left + long + 6, y + 4, count(n), 'value'),
    ];
  });
  return canvas(width, rows.length * high + 4, spoken, ...parts.flat());
}

/** Points with intervals, `series` side by side in every group: groups {name, points: [{value, low, high}|null]}. */
function intervalPoints(groups, series, width, spoken) {
  const each = 13, gap = 12, left = Math.min(110, width * 0.26), right = 12, top = 4, bottom = 24;
  const ends = groups.flatMap((g) => g.points).filter(Boolean).flatMap((p) => [p.mean, p.low, p.high]).filter(known);
  const from = Math.min(0, ...ends), to = Math.max(0, ...ends) || 1;
  const x = (v) => left + ((v - from) / (to - from || 1)) * (width - left - right);
  const tall = series.length * each + gap;
  const height = top + groups.length * tall + bottom;
  const parts = ticks(from, to, width < 420 ? 3 : 6).map((t) => [
    svg('line', { x1: x(t), x2: x(t), y1: top, y2: height - bottom, class: t === 0 ? 'zero' : 'rule' }),
    label(x(t), height - 8, `${Math.round(t * 100)} %`, 'tick', 'middle'),
  ]);
  groups.forEach((g, i) => {
    parts.push(label(0, top + i * tall + tall / 2 + 4, plain(g.name, 16), 'name'));
    g.points.forEach((p, j) => {
      if (!p || !known(p.mean)) return;
      const y = top + i * tall + gap / 2 + j * each + each / 2;
      if (known(p.low) && known(p.high)) parts.push(svg('path', { d: `M${x(p.low)} ${y}H${x(p.high)}`, class: `interval s${j % 6}` }));
      parts.push(svg('circle', { cx: x(p.mean), cy: y, r: 4, class: `point s${j % 6}` },
        svg('title', {}, `${plain(series[j])}, ${plain(g.name)}: ${uplift(p.mean)}`)));
    });
  });
  return canvas(width, height, spoken, ...parts.flat());
}
