"use strict";
// When a reader opens the section, unpack the library and the volumes that this page carries. Nothing is fetched from anywhere.

const section = document.getElementById("viewer");
const says = document.getElementById("viewer-says");
const IMAGE = { name: "volume.nii.gz", colormap: "gray", cal_min: 0, cal_max: 255, colorbarVisible: false };
const LABELS = { name: "labels.nii.gz", colormap: "warm", opacity: 0.4, colorbarVisible: false };

async function library() {
  const packed = Uint8Array.from(atob(document.getElementById("niivue").textContent), (character) => character.charCodeAt(0));
  const script = document.createElement("script");
  script.textContent = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script); // runs at once: the page's policy names its hash
  return window.niivue;
}

async function opened() {
  if (!document.createElement("canvas").getContext("webgl2")) throw new Error("WebGL 2 is missing");
  const { Niivue, NVImage } = await library();
  const views = [];
  for (const figure of section.querySelectorAll("figure")) {
    const view = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.5, 0.72, 0.93, 0.9], crosshairWidth: 0.6, crosshairWidthUnit: "percent", show3Dcrosshair: true,
      isRadiologicalConvention: true, multiplanarLayout: 2, multiplanarShowRender: 1, fontColor: [0.9, 0.9, 0.9, 1], loadingText: "", logLevel: "error",
    });
    await view.attachToCanvas(figure.querySelector("canvas"));
    view.addVolume(await NVImage.loadFromBase64({ ...IMAGE, base64: figure.querySelector(".image").textContent }));
    const labels = figure.querySelector(".labels");
    if (labels) view.addVolume(await NVImage.loadFromBase64({ ...LABELS, base64: labels.textContent }));
    view.setSliceType(view.sliceTypeMultiplanar);
    views.push(view);
  }
  views.forEach((view) => view.broadcastTo(views.filter((other) => other !== view)));
  document.getElementById("viewer-mode")?.addEventListener("change", (event) => {
    views.forEach((view) => view.setSliceType(view[event.target.value]));
  });
  document.getElementById("viewer-labels")?.addEventListener("change", (event) => {
    views.forEach((view) => view.setOpacity(1, event.target.checked ? LABELS.opacity : 0));
  });
  says.textContent = says.dataset.ready;
  section.classList.add("ready");
}

function start() {
  says.textContent = "Unpacking …";
  section.classList.add("opening"); // a canvas needs its size before it is drawn on
  opened().catch((error) => {
    section.classList.remove("opening");
    says.textContent = `${says.dataset.fallback} (${error.message})`;
  });
}

if (section.open) start();
else section.addEventListener("toggle", start, { once: true });
