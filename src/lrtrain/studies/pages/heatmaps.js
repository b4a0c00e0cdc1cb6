// A strip a layer, a cell a step; colors from dark (lowest) over green to yellow (highest).
const STOPS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [110, 206, 88], [253, 231, 37]];

function colorAt(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(place), STOPS.length - 2);
  const mixed = STOPS[low].map((value, i) => Math.round(value + (place - low) * (STOPS[low + 1][i] - value)));
  return `rgb(${mixed.join(",")})`;
}

function heatmap(figure, data) {
  const known = data.rows.flatMap((row) => row.values).filter((v) => v !== null && (!data.logarithmic || v > 0));
  const scaled = (v) => (data.logarithmic ? Math.log10(v) : v);
  const low = known.reduce((a, b) => Math.min(a, b), Infinity), high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const share = (v) => (high > low ? (scaled(v) - scaled(low)) / (scaled(high) - scaled(low)) : 0.5);
  const plot = element("div", "plot", figure);
  for (const row of data.rows) {
    const strip = element("div", "strip", plot);
    element("span", "", strip).textContent = row.label;
    const canvas = element("canvas", "", strip);
    [canvas.width, canvas.height] = [data.steps.length, 1];
    const context = canvas.getContext("2d");
    row.values.forEach((value, column) => {
      if (value === null || (data.logarithmic && value <= 0)) return;
      context.fillStyle = colorAt(share(value));
      context.fillRect(column, 0, 1, 1);
    });
    const show = (event) => {
      const box = canvas.getBoundingClientRect();
      const column = Math.min(data.steps.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * data.steps.length)));
      const value = row.values[column];
      tip(plot, event, [[row.label, ""], [`step ${data.steps[column]}`, value === null ? "–" : digits(value)]]);
    };
    canvas.addEventListener("pointermove", show);
    canvas.addEventListener("pointerdown", show);
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "touch" || tip(plot));
  }
  const ends = element("div", "strip", plot);
  element("span", "", ends);
  const steps = element("div", "ends", ends);
  element("span", "", steps).textContent = `step ${data.steps[0]}`;
  element("span", "", steps).textContent = `step ${data.steps[data.steps.length - 1]}`;
  const scale = element("div", "scale", plot);
  element("span", "", scale).textContent = known.length ? digits(low) : "no finite values";
  const bar = element("canvas", "", scale);
  [bar.width, bar.height] = [64, 1];
  for (let i = 0; i < 64; i++) {
    bar.getContext("2d").fillStyle = colorAt(i / 63);
    bar.getContext("2d").fillRect(i, 0, 1, 1);
  }
  element("span", "", scale).textContent = known.length ? `${digits(high)}${data.logarithmic ? " (logarithmic)" : ""}` : "";
}
