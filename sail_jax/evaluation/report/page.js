// Tables sort by the heads of their columns; a chart is saved as a picture.
"use strict";
function sailSave(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
for (const table of document.querySelectorAll("table")) {
  const heads = table.tHead?.rows.length ? [...table.tHead.rows[table.tHead.rows.length - 1].cells] : [];
  const body = table.tBodies[0];
  if (!body || body.rows.length < 2) continue;
  const number = (text) => { const found = text.replaceAll(",", "").match(/^[-+−]?\d+(\.\d+)?/); return found ? parseFloat(found[0].replace("−", "-")) : NaN; };
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column]?.textContent.trim() ?? "";
      const order = (a, b) => {
        const [m, n] = [number(key(a)), number(key(b))];
        if (isNaN(m) && isNaN(n)) return key(a).localeCompare(key(b)) * (up ? 1 : -1);
        if (isNaN(m) || isNaN(n)) return isNaN(m) - isNaN(n);
        return (m - n) * (up ? 1 : -1);
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
for (const box of document.querySelectorAll(".scroll")) if (!box.querySelector("button")) box.tabIndex = 0; // keys scroll it
for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg"), links = figure.querySelector(".links");
  if (!svg || !links) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "PNG";
  button.setAttribute("aria-label", "Save as PNG: " + svg.getAttribute("aria-label"));
  button.addEventListener("click", () => {
    const copy = svg.cloneNode(true), [, , wide, high] = svg.getAttribute("viewBox").split(" ").map(Number), image = new Image();
    copy.setAttribute("width", wide);
    copy.setAttribute("height", high);
    copy.style.color = "#1c2330";
    image.onload = () => {
      const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
      [canvas.width, canvas.height] = [wide * 3, high * 3];
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => sailSave(blob, figure.dataset.name + ".png"));
    };
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(copy));
  });
  links.prepend(button);
}
