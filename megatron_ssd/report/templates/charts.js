// Draws every plot of the page with Vega-Embed, which is bundled in front of this script. It fetches nothing: data is
// in the specifications, and expressions are interpreted (ast), so that the page's policy need not allow eval.
// Colors are CSS variables: one drawing serves light pages, dark pages and paper.
const font = '-apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif';
const config = {
  background: null,
  font,
  padding: 2,
  view: { stroke: null },
  axis: {
    domain: false, ticks: false, gridColor: "var(--rule)", labelColor: "var(--muted)", labelFontSize: 12,
    labelPadding: 6, titleColor: "var(--muted)", titleFontSize: 12, titleFontWeight: "normal", titlePadding: 8,
  },
  legend: {
    orient: "top", titleColor: "var(--muted)", titleFontSize: 13, titleFontWeight: "normal", titleOrient: "left",
    labelColor: "var(--ink)", labelFontSize: 13, symbolSize: 90, symbolStrokeWidth: 1.6, offset: 8, columnPadding: 18,
  },
  text: { color: "var(--ink)", fontSize: 12.5 },
  line: { strokeWidth: 1.6, strokeJoin: "round", strokeCap: "round" },
};
const options = {
  config, actions: false, ast: true, defaultStyle: false, mode: "vega-lite", renderer: "svg",
  tooltip: { disableDefaultStyle: true },
};

for (const chart of document.querySelectorAll(".chart")) {
  vegaEmbed(chart, JSON.parse(chart.querySelector("script").textContent), options).catch((error) => {
    chart.textContent = `This plot cannot be drawn: ${error.message}`;
    console.error(error);
  });
}
