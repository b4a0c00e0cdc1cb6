const DATA = JSON.parse(document.getElementById("data").textContent);
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const data = DATA[Number(figure.dataset.chart)];
  (data.kind === "heatmap" ? heatmap : chart)(figure, data);
}
