// Curves: choosing axes, hiding lines, reading values by pointer or by arrow keys.
const SVG = "http://www.w3.org/2000/svg";
const COLORS = 7;
const DASHES = ["", "7 3", "2 2.5", "8 3 2 3", "12 3", "4 2", "", "2 2.5", "", "7 3", "", "2 2.5"];
const OWN = DASHES.length; // lines with a look of their own; the others are thin and gray

function element(name, kind, parent) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (parent) parent.append(made);
  return made;
}

function drawn(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 0.1 && size < 1e4) return String(Number(value.toFixed(4)));
  if (size >= 1e4 && size < 1e7) return Math.round(value).toLocaleString("en");
  return size < 1 ? String(Number(value.toPrecision(4))) : value.toExponential(2).replace(/\.?0+e\+?/, "e");
}

function tip(plot, event, rows) {
  plot.querySelector(".tip")?.remove();
  if (!rows) return;
  const box = element("div", "tip", plot);
  const table = element("table", "", box);
  for (const [name, value] of rows) {
    const row = table.insertRow();
    row.insertCell().textContent = name;
    row.insertCell().textContent = value;
  }
  const frame = plot.getBoundingClientRect();
  const x = event.clientX - frame.left;
  const left = x + 14 + box.offsetWidth < frame.width ? x + 14 : Math.max(0, x - 14 - box.offsetWidth);
  box.style.left = `${Math.min(left, Math.max(0, frame.width - box.offsetWidth))}px`;
  box.style.top = `${Math.max(0, event.clientY - frame.top - box.offsetHeight - 10)}px`;
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const times of Math.log10(high / low) < 2 ? [1, 2, 5] : [1]) {
      const value = Number((times * 10 ** power).toPrecision(6));
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  const every = Math.ceil(found.length / 8);
  return found.length > 1 ? found.filter((_, i) => i % every === 0) : ticks(low, high, 4);
}

function scale(low, high, from, to, logarithmic) {
  const as = logarithmic ? Math.log10 : Number;
  return (value) => from + ((as(value) - as(low)) / (as(high) - as(low))) * (to - from);
}

function limits(panel, bands, logarithmic, whole) {
  const seen = [[], []];
  for (const { x, mean, low = mean, high = mean } of bands) {
    const start = x[0] + 0.1 * (x[x.length - 1] - x[0]);
    x.forEach((place, i) => {
      if (low[i] !== null && (!logarithmic || low[i] > 0)) seen[0].push(low[i]);
      const late = whole || logarithmic || place >= start;
      if (late && high[i] !== null && (!logarithmic || high[i] > 0)) seen[1].push(high[i]);
    });
  }
  if (panel.bound !== null) seen[1].push(panel.bound);
  let [low, high] = [Math.min(...seen[0]), Math.max(...seen[1])];
  if (!isFinite(low) || !isFinite(high)) return null;
  if (!(high > low)) [low, high] = logarithmic ? [low / 2, low * 2] : [low - Math.abs(low || 1) * 0.1, low + Math.abs(low || 1) * 0.1];
  const margin = 0.06 * (high - low);
  return logarithmic ? [low / 1.1, high * 1.1] : [low - margin, high + margin];
}

function path(xs, ys) {
  let text = "", pen = "M";
  xs.forEach((x, i) => {
    if (ys[i] === null || !isFinite(ys[i])) pen = "M";
    else [text, pen] = [`${text}${pen}${x.toFixed(1)} ${ys[i].toFixed(1)}`, "L"];
  });
  return text;
}

function color(index) {
  return `var(--c${index < OWN ? index % COLORS : COLORS})`;
}

function markers(group, xs, ys, index) {
  const every = Math.max(1, Math.floor(xs.length / 7));
  const shapes = ["M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-3.5-3.5h7v7h-7z", "M0-4.5L4.5 3.5H-4.5z", "M0-5L4 0L0 5L-4 0z", "M0 4.5L4.5-3.5H-4.5z", "M-4-1.5h2.5V-4h3v2.5H4v3H1.5V4h-3V1.5H-4z", "M-4-4L4 4M4-4L-4 4",
    "M-4.5 0L3.5-4.5V4.5z", "M4.5 0L-3.5-4.5V4.5z", "M-2.5-4.5h5v9h-5z", "M-4.5-2.5h9v5h-9z", "M0-5V5M-5 0H5"];
  for (let i = 0; i < xs.length; i += every)
    if (ys[i] !== null && isFinite(ys[i]))
      drawn("path", { d: shapes[index], transform: `translate(${xs[i].toFixed(1)} ${ys[i].toFixed(1)})`, fill: color(index), stroke: color(index) }, group);
}

function chart(figure, data) {
  const state = { y: Object.keys(data.panels)[0], x: null, logarithmic: null, whole: false, hidden: new Set() };
  const controls = element("div", "controls", figure);
  const plot = element("div", "plot", figure);
  const legend = element("div", "legend", figure);
  plot.tabIndex = 0;
  plot.setAttribute("role", "img");

  const choose = (name, values, current, act) => {
    const label = element("label", "", controls);
    label.append(name);
    const select = element("select", "", label);
    for (const value of values) select.append(new Option(value, value, false, value === current));
    select.addEventListener("change", () => act(select.value));
  };
  const tick = (name, on, act) => {
    const label = element("label", "", controls);
    const box = element("input", "", label);
    [box.type, box.checked] = ["checkbox", on];
    label.append(name);
    box.addEventListener("change", () => act(box.checked));
  };

  const redraw = (more) => {
    Object.assign(state, more);
    const axes = data.panels[state.y];
    if (!(state.x in axes)) state.x = Object.keys(axes)[0];
    const panel = axes[state.x];
    if (state.logarithmic === null) state.logarithmic = panel.logarithmic;
    const held = [...controls.querySelectorAll("select, input")].indexOf(document.activeElement);
    controls.replaceChildren();
    if (Object.keys(data.panels).length === 1) element("span", "", controls).textContent = panel.ylabel;
    else choose("y", Object.keys(data.panels), state.y, (y) => redraw({ y, logarithmic: null }));
    if (Object.keys(axes).length > 1) choose("x", Object.keys(axes), state.x, (x) => redraw({ x }));
    tick("log y", state.logarithmic, (logarithmic) => redraw({ logarithmic }));
    const bands = panel.bands.filter((band) => !state.hidden.has(band.label));
    const cut = limits(panel, bands, state.logarithmic, panel.whole), all = limits(panel, bands, state.logarithmic, true);
    if (cut && all && cut[1] < all[1]) tick("with the steep beginning", state.whole, (whole) => redraw({ whole }));
    controls.querySelectorAll("select, input")[held]?.focus();
    plot.setAttribute("aria-label", `${panel.ylabel} over ${panel.xlabel}`);
    curves(plot, panel, state, state.whole ? all : cut);
    legend.replaceChildren();
    panel.bands.forEach((band, index) => entry(legend, band, index, state, redraw));
  };
  redraw({});
  let width = plot.clientWidth;
  addEventListener("resize", () => {
    if (plot.clientWidth !== width) [width] = [plot.clientWidth, redraw({})];
  });
}

function entry(legend, band, index, state, redraw) {
  const button = element("button", "", legend);
  button.type = "button";
  button.setAttribute("aria-pressed", String(!state.hidden.has(band.label)));
  const swatch = drawn("svg", { viewBox: "0 0 34 12", "aria-hidden": "true" }, button);
  drawn("path", { d: "M0 6H34", stroke: color(index), "stroke-width": index < OWN ? 2 : 1, "stroke-dasharray": DASHES[index] ?? "" }, swatch);
  if (index < OWN) markers(swatch, [17], [6], index);
  const runs = band.runs > 1 ? ` (${band.runs} runs)` : "";
  element("span", "", button).textContent = `${band.label}: ${band.last === null ? "not finite" : digits(band.last)}${runs}`;
  button.addEventListener("click", () => {
    state.hidden.has(band.label) ? state.hidden.delete(band.label) : state.hidden.add(band.label);
    redraw({});
    legend.children[index].focus();
  });
}

function curves(plot, panel, state, range) {
  const width = Math.max(plot.clientWidth, 200), height = width < 480 ? 230 : 300;
  const inside = { left: 58, right: width - 10, top: 10, bottom: height - 40 };
  plot.replaceChildren();
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}` }, plot);
  const bands = panel.bands.map((band, index) => ({ ...band, index })).filter((band) => !state.hidden.has(band.label));
  if (!range || !bands.length) {
    drawn("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg).textContent = bands.length ? "no finite values" : "all lines are hidden";
    return;
  }
  const first = Math.min(...bands.map((band) => band.x[0])), last = Math.max(...bands.map((band) => band.x[band.x.length - 1]));
  const alone = !(last > first), half = panel.x_logarithmic ? first / 2 : 0.5;
  const from = alone ? first - half : first, to = alone ? first + half : last;
  const x = scale(from, to, inside.left, inside.right, panel.x_logarithmic);
  const y = scale(range[0], range[1], inside.bottom, inside.top, state.logarithmic);
  const places = alone ? [first] : panel.x_logarithmic ? logTicks(from, to) : ticks(from, to, width < 480 ? 4 : 6);
  frame(svg, panel, { x, y, places, range, inside, state });
  const clip = `clip${(curves.count = (curves.count || 0) + 1)}`;
  drawn("rect", { x: inside.left, y: inside.top - 4, width: inside.right - inside.left + 6, height: inside.bottom - inside.top + 4 }, drawn("clipPath", { id: clip }, svg));
  const group = drawn("g", { "clip-path": `url(#${clip})` }, svg);
  const place = (value) => (value === null || (state.logarithmic && value <= 0) ? null : y(value));
  for (const band of [...bands].reverse()) {
    const xs = band.x.map(x);
    const mean = band.mean.map(place);
    if (band.low) {
      const [low, high] = [band.low.map(place), band.high.map(place)];
      const known = xs.map((_, i) => i).filter((i) => low[i] !== null && high[i] !== null);
      const there = known.map((i) => `${xs[i].toFixed(1)} ${high[i].toFixed(1)}`), back = known.reverse().map((i) => `${xs[i].toFixed(1)} ${low[i].toFixed(1)}`);
      if (known.length) drawn("path", { d: `M${there.join("L")}L${back.join("L")}Z`, fill: color(band.index), opacity: 0.18 }, group);
    }
    drawn("path", { d: path(xs, mean), fill: "none", stroke: color(band.index), "stroke-width": band.index < OWN ? 1.8 : 0.8, "stroke-dasharray": DASHES[band.index] ?? "" }, group);
    if (band.index < OWN) markers(group, xs, mean, band.index);
    else if (xs.length === 1 && mean[0] !== null) drawn("circle", { cx: xs[0], cy: mean[0], r: 2.5, fill: "var(--c7)" }, group);
  }
  reading(plot, svg, panel, bands, { x, y: place, inside, width, height });
}

function frame(svg, panel, at) {
  const { x, y, places, range, inside, state } = at;
  for (const value of state.logarithmic ? logTicks(...range) : ticks(...range, 5)) {
    drawn("path", { class: "grid", d: `M${inside.left} ${y(value)}H${inside.right}` }, svg);
    drawn("text", { x: inside.left - 6, y: y(value) + 4, "text-anchor": "end" }, svg).textContent = digits(value);
  }
  for (const value of places) {
    drawn("path", { class: "grid", d: `M${x(value)} ${inside.top}V${inside.bottom}` }, svg);
    drawn("text", { x: x(value), y: inside.bottom + 16, "text-anchor": x(value) > inside.right - 12 ? "end" : "middle" }, svg).textContent = digits(value);
  }
  drawn("path", { class: "axis", fill: "none", d: `M${inside.left} ${inside.top}V${inside.bottom}H${inside.right}` }, svg);
  drawn("text", { x: (inside.left + inside.right) / 2, y: inside.bottom + 34, "text-anchor": "middle" }, svg).textContent = panel.xlabel;
  if (panel.bound !== null && panel.bound >= range[0] && panel.bound <= range[1]) drawn("path", { class: "bound", d: `M${inside.left} ${y(panel.bound)}H${inside.right}` }, svg);
}

function reading(plot, svg, panel, bands, at) {
  const points = [...new Set(bands.flatMap((band) => band.x))].sort((a, b) => a - b);
  const marks = drawn("g", {}, svg);
  let current = points.length - 1;
  const hide = () => { marks.replaceChildren(); tip(plot); };
  const show = (event) => {
    const value = points[current];
    marks.replaceChildren();
    drawn("path", { class: "cursor", d: `M${at.x(value)} ${at.inside.top}V${at.inside.bottom}` }, marks);
    const rows = bands.map((band) => {
      let near = 0;
      band.x.forEach((one, i) => { if (Math.abs(one - value) < Math.abs(band.x[near] - value)) near = i; });
      const place = at.y(band.mean[near]);
      if (place !== null) drawn("circle", { cx: at.x(band.x[near]), cy: place, r: 3.5, fill: color(band.index) }, marks);
      const spread = band.low && band.low[near] !== null ? `  ${digits(band.low[near])} to ${digits(band.high[near])}` : "";
      const elsewhere = band.x[near] === value ? "" : ` at ${digits(band.x[near])}`;
      return [band.label + elsewhere, (band.mean[near] === null ? "not finite" : digits(band.mean[near])) + spread];
    });
    tip(plot, event, [[panel.xlabel, digits(value)], ...rows.slice(0, 12), ...(rows.length > 12 ? [[`and ${rows.length - 12} more`, ""]] : [])]);
  };
  const byPointer = (event) => {
    const box = svg.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) / box.width) * at.width;
    points.forEach((point, i) => { if (Math.abs(at.x(point) - pixel) < Math.abs(at.x(points[current]) - pixel)) current = i; });
    show(event);
  };
  svg.addEventListener("pointermove", byPointer);
  svg.addEventListener("pointerdown", byPointer);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "touch" || hide());
  plot.onblur = hide;
  plot.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    current = Math.min(points.length - 1, Math.max(0, current + by));
    const box = svg.getBoundingClientRect();
    show({ clientX: box.left + (at.x(points[current]) / at.width) * box.width, clientY: box.top + box.height / 2 });
  };
}
