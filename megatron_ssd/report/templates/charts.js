// Draws every plot of the page with Vega-Embed, which is bundled before this script. It fetches nothing: the data is in
// the specifications. Expressions are interpreted (ast), so that the page's policy need not allow eval.
const options = {
  actions: false, ast: true, defaultStyle: false, mode: "vega-lite", renderer: "svg",
  tooltip: { disableDefaultStyle: true },
};

for (const chart of document.querySelectorAll(".chart")) {
  vegaEmbed(chart, JSON.parse(chart.querySelector("script").textContent), options).catch((error) => {
    chart.textContent = `This plot cannot be drawn: ${error.message}`;
    console.error(error);
  });
}
